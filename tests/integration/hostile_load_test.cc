// How long a client waits while others hold a thousand half-open connections and read nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/latency_summary.h"
#include "tests/integration/hostile_connections.h"

namespace kvdepot {
namespace {

constexpr int kRounds = 7;
constexpr int kCalls = 3000;

class HostileLoadTest : public HostileConnections {
 protected:
  HostileLoadTest() : stub_(v1::KvDepotService::NewStub(Channel(Good()))) {
    daemon_->CallAs(kAliceToken);
    session_ = daemon_->CreateSession("own");
    EXPECT_TRUE(daemon_->AppendTokens(session_, 0, 256).ok());
  }

  // Of attends over one connection.
  absl::Duration P99() {
    std::vector<absl::Duration> latencies;
    const v1::AttendRequest request = AttendOf(session_, 0, Queries(1, 1));
    for (int i = 0; i < kCalls; ++i) {
      Context context(kAliceToken);
      v1::AttendResponse response;
      const absl::Time start = absl::Now();
      EXPECT_TRUE(stub_->Attend(context.get(), request, &response).ok());
      latencies.push_back(absl::Now() - start);
    }
    return Summarize(latencies).p99;
  }

  std::unique_ptr<v1::KvDepotService::Stub> stub_;
  v1::Session session_;
};

absl::Duration Median(std::vector<absl::Duration> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

TEST_F(HostileLoadTest, KeepsTheP99OfOthersWithinTwice) {
  std::vector<absl::Duration> alone, beside;
  P99();  // Warm.
  for (int round = 0; round < kRounds; ++round) {
    alone.push_back(P99());
    StartSlowReaders(64, absl::Seconds(60));
    OpenHalf(1000);
    beside.push_back(P99());
    EXPECT_EQ(OpenFetches(), 64);
    CloseHalfOpen();
    CancelSlowReaders();
    while (OpenFetches() > 0) {
    }
  }
  const absl::Duration without = Median(alone), with = Median(beside);
  std::cout << "p99 alone " << without << ", beside " << with << "\n";
  EXPECT_LE(with, 2 * without);
}

}  // namespace
}  // namespace kvdepot
