#include "client/grpc_status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(FromGrpcStatusTest, KeepsCodeAndMessage) {
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status =
        FromGrpcStatus(grpc::Status(static_cast<grpc::StatusCode>(code), "why"));
    EXPECT_EQ(status.raw_code(), code);
    EXPECT_EQ(status.message(), "why");
  }
}

TEST(FromGrpcStatusTest, EachDetailBecomesAPayload) {
  google::rpc::BadRequest bad_request;
  bad_request.add_field_violations()->set_field("chunk.k");
  google::rpc::ErrorInfo error_info;
  error_info.set_reason("SHAPE");
  google::rpc::Status rich;
  rich.add_details()->PackFrom(bad_request);
  rich.add_details()->PackFrom(error_info);
  const absl::Status status = FromGrpcStatus(
      grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "chunk.k", rich.SerializeAsString()));

  google::rpc::BadRequest received;
  const auto payload = status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
  ASSERT_TRUE(payload.has_value());
  ASSERT_TRUE(received.ParseFromString(std::string(*payload)));
  EXPECT_EQ(received.field_violations(0).field(), "chunk.k");
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.ErrorInfo").has_value());
}

TEST(FromGrpcStatusTest, MalformedDetailsAreDropped) {
  const absl::Status status =
      FromGrpcStatus(grpc::Status(grpc::StatusCode::INTERNAL, "why", "\xff\xff\xff"));
  EXPECT_EQ(status, absl::InternalError("why"));
}

}  // namespace
}  // namespace kvdepot
