// What becomes of connections that are there to be in the way, and that they keep nobody out.
#include "tests/integration/hostile_connections.h"

#include <gtest/gtest.h>

namespace kvdepot {
namespace {

using HostileConnectionsTest = HostileConnections;

TEST_F(HostileConnectionsTest, AThousandThatAreHalfOpenAreClosed) {
  OpenHalf(1000);
  EXPECT_TRUE(Call(Good()).ok());
  WaitUntilHalfOpenAreClosed();
  EXPECT_TRUE(Call(Good()).ok());
}

TEST_F(HostileConnectionsTest, ReadersThatDoNotReadHoldTheirOwnCallsAlone) {
  StartSlowReaders(64, absl::Seconds(5));
  EXPECT_TRUE(Call(Good()).ok());
  EXPECT_EQ(OpenFetches(), 64);
  for (const grpc::Status& status : EndSlowReaders()) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  // The daemon lets go of them too.
  while (OpenFetches() > 0) {
  }
}

}  // namespace
}  // namespace kvdepot
