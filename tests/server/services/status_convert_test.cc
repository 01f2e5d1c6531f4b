// Every domain code becomes the gRPC code of the same number with typed details that carry the name
// of the field or limit.
#include "server/services/status_convert.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

google::rpc::Status Rich(const grpc::Status& status) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  return rich;
}

template <typename Detail>
bool Find(const grpc::Status& status, Detail* detail) {
  const google::rpc::Status rich = Rich(status);
  for (const auto& any : rich.details()) {
    if (any.UnpackTo(detail)) return true;
  }
  return false;
}

TEST(StatusConvert, OkStaysOk) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
}

TEST(StatusConvert, EveryCodeKeepsItsNumber) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpcStatus(absl::Status(static_cast<absl::StatusCode>(code), "field: value, limit"));
    // Nothing of ours is UNKNOWN: who meets it has found a bug.
    const int expected = code == 2 ? 13 : code;
    EXPECT_EQ(static_cast<int>(status.error_code()), expected);
    EXPECT_EQ(status.error_message(), "field: value, limit");
    EXPECT_EQ(Rich(status).code(), expected);
    EXPECT_EQ(Rich(status).message(), "field: value, limit");
    google::rpc::ErrorInfo info;
    ASSERT_TRUE(Find(status, &info)) << code;
    EXPECT_EQ(info.domain(), "kvdepot");
    EXPECT_FALSE(info.reason().empty());
    EXPECT_EQ(info.metadata().at("subject"), "field");
  }
}

TEST(StatusConvert, InvalidArgumentNamesTheField) {
  google::rpc::BadRequest bad;
  ASSERT_TRUE(
      Find(ToGrpcStatus(absl::InvalidArgumentError("items[2].queries.q: 12 bytes, 256")), &bad));
  ASSERT_EQ(bad.field_violations_size(), 1);
  EXPECT_EQ(bad.field_violations(0).field(), "items[2].queries.q");
  EXPECT_EQ(bad.field_violations(0).description(), "items[2].queries.q: 12 bytes, 256");
}

TEST(StatusConvert, ResourceExhaustedNamesTheLimit) {
  google::rpc::QuotaFailure quota;
  ASSERT_TRUE(
      Find(ToGrpcStatus(absl::ResourceExhaustedError("budget_bytes: 5 of 5 used")), &quota));
  ASSERT_EQ(quota.violations_size(), 1);
  EXPECT_EQ(quota.violations(0).subject(), "budget_bytes");
}

TEST(StatusConvert, UnavailableSaysWhenToTryAgain) {
  google::rpc::RetryInfo busy, draining;
  ASSERT_TRUE(Find(ToGrpcStatus(absl::UnavailableError("session_id: another call")), &busy));
  EXPECT_EQ(busy.retry_delay().seconds(), 0);
  EXPECT_EQ(busy.retry_delay().nanos(), 10'000'000);
  ASSERT_TRUE(Find(ToGrpcStatus(absl::UnavailableError("draining: no new work")), &draining));
  EXPECT_EQ(draining.retry_delay().seconds(), 1);
}

TEST(StatusConvert, CutsLongMessagesBetweenCharacters) {
  const std::string euros = [] {
    std::string text = "name: ";
    for (int i = 0; i < 1000; ++i) absl::StrAppend(&text, "\xE2\x82\xAC");
    return text;
  }();
  const grpc::Status status = ToGrpcStatus(absl::InvalidArgumentError(euros));
  EXPECT_LE(status.error_message().size(), kStatusMessageBytesMax);
  EXPECT_GT(status.error_message().size(), kStatusMessageBytesMax - 3);
  EXPECT_EQ((status.error_message().size() - 6) % 3, 0u);
  EXPECT_EQ(Rich(status).message(), status.error_message());
}

TEST(StatusConvert, MessagesWithoutASubjectStillConvert) {
  google::rpc::BadRequest bad;
  ASSERT_TRUE(Find(ToGrpcStatus(absl::InvalidArgumentError("Something else: odd")), &bad));
  EXPECT_EQ(bad.field_violations(0).field(), "");
}

}  // namespace
}  // namespace kvdepot
