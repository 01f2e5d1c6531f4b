#include "server/services/read_ahead.h"

#include <string>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

using Messages = ReadAhead<std::string>;
using Next = Messages::Next;

TEST(ReadAhead, WorksOnMessagesInOrderWhileTheNextArrives) {
  Messages messages;
  *messages.spare() = "first";
  ASSERT_EQ(messages.Received(true), Next::kWork);
  EXPECT_EQ(messages.current(), "first");
  *messages.spare() = "second";
  EXPECT_EQ(messages.Received(true), Next::kWait);
  EXPECT_EQ(messages.current(), "first");
  ASSERT_EQ(messages.Worked(), Next::kWork);
  EXPECT_EQ(messages.current(), "second");
  EXPECT_EQ(messages.Worked(), Next::kWait);
}

TEST(ReadAhead, EndsOnceAfterTheLastMessageIsDone) {
  Messages messages;
  ASSERT_EQ(messages.Received(true), Next::kWork);
  EXPECT_EQ(messages.Received(false), Next::kWait);
  EXPECT_EQ(messages.Worked(), Next::kEnd);
  EXPECT_EQ(messages.Worked(), Next::kWait);
}

TEST(ReadAhead, AnEmptyStreamEndsAtOnce) {
  Messages messages;
  EXPECT_EQ(messages.Received(false), Next::kEnd);
}

TEST(ReadAhead, NothingHappensAfterStop) {
  Messages messages;
  ASSERT_EQ(messages.Received(true), Next::kWork);
  messages.Stop();
  EXPECT_EQ(messages.Received(true), Next::kWait);
  EXPECT_EQ(messages.Worked(), Next::kWait);
  EXPECT_EQ(messages.Received(false), Next::kWait);
}

}  // namespace
}  // namespace kvdepot
