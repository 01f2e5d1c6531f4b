#include "server/pending_answers.h"

#include <thread>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(PendingAnswers, NoneAreWaitedForWhereThereAreNone) {
  PendingAnswers answers;
  EXPECT_EQ(answers.WaitUntilNone(absl::InfinitePast()), 0);
  answers.Add();
  answers.Remove();
  EXPECT_EQ(answers.WaitUntilNone(absl::InfinitePast()), 0);
}

TEST(PendingAnswers, TheLastOneEndsTheWait) {
  PendingAnswers answers;
  answers.Add();
  answers.Add();
  std::thread ends([&answers] {
    answers.Remove();
    answers.Remove();
  });
  EXPECT_EQ(answers.WaitUntilNone(absl::InfiniteFuture()), 0);
  ends.join();
}

TEST(PendingAnswers, WhatIsLeftAtTheDeadlineIsCounted) {
  PendingAnswers answers;
  answers.Add();
  answers.Add();
  answers.Remove();
  EXPECT_EQ(answers.WaitUntilNone(absl::Now() + absl::Milliseconds(1)), 1);
}

}  // namespace
}  // namespace kvdepot
