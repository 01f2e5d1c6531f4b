#include "client/retry.h"

#include "client/grpc_status.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

const absl::Time kNow = absl::FromUnixSeconds(1000);
const absl::Time kFar = kNow + absl::Hours(1);

absl::Status AskedToWait(absl::Duration delay) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  info.mutable_retry_delay()->set_nanos(static_cast<int>(
      absl::ToInt64Nanoseconds(delay - absl::Seconds(absl::ToInt64Seconds(delay)))));
  absl::Status status = absl::UnavailableError("busy");
  status.SetPayload("type.googleapis.com/google.rpc.RetryInfo",
                    absl::Cord(info.SerializeAsString()));
  return status;
}

TEST(RetryTest, OnlyUnavailableIsTriedAgain) {
  for (int code = 1; code <= 16; ++code) {
    Retry retry(kFar);
    const absl::Status status(static_cast<absl::StatusCode>(code), "");
    EXPECT_EQ(retry.DelayAfter(status, kNow).has_value(), absl::IsUnavailable(status)) << status;
  }
}

TEST(RetryTest, WaitsAtLeastAsLongAsAskedAndNotMuchLonger) {
  Retry retry(kFar);
  for (int i = 0; i < 100; ++i) {
    const auto delay = retry.DelayAfter(AskedToWait(absl::Milliseconds(1200)), kNow);
    ASSERT_TRUE(delay.has_value());
    EXPECT_GE(*delay, absl::Milliseconds(1200));
    EXPECT_LE(*delay, absl::Milliseconds(1500));
  }
}

TEST(RetryTest, AbsurdWishesAreBounded) {
  Retry retry(kFar);
  EXPECT_LE(*retry.DelayAfter(AskedToWait(absl::Minutes(30)), kNow), kRetryDelayMax * 1.25);
  EXPECT_GE(*retry.DelayAfter(AskedToWait(absl::ZeroDuration()), kNow), kRetryDelayMin);
  EXPECT_GE(*retry.DelayAfter(AskedToWait(absl::Seconds(-5)), kNow), kRetryDelayMin);
}

TEST(RetryTest, UnansweredAttemptsGrowApartAndEnd) {
  Retry retry(kFar);
  absl::Duration previous;
  for (int attempt = 1; attempt < kUnansweredAttemptsMax; ++attempt) {
    const auto delay = retry.DelayAfter(absl::UnavailableError("connection refused"), kNow);
    ASSERT_TRUE(delay.has_value()) << attempt;
    EXPECT_GT(*delay, previous);
    previous = *delay;
  }
  EXPECT_FALSE(retry.DelayAfter(absl::UnavailableError("connection refused"), kNow).has_value());
}

TEST(RetryTest, NoDelayReachesTheDeadline) {
  Retry retry(kNow + absl::Milliseconds(100));
  EXPECT_TRUE(retry.DelayAfter(AskedToWait(absl::Milliseconds(10)), kNow).has_value());
  EXPECT_FALSE(retry.DelayAfter(AskedToWait(absl::Milliseconds(100)), kNow).has_value());
}

TEST(RetryDelayTest, IsAbsentWithoutADetailOrWithAMalformedOne) {
  absl::Status status = absl::UnavailableError("");
  EXPECT_FALSE(RetryDelay(status).has_value());
  status.SetPayload("type.googleapis.com/google.rpc.RetryInfo", absl::Cord("\xff\xff"));
  EXPECT_FALSE(RetryDelay(status).has_value());
}

}  // namespace
}  // namespace kvdepot
