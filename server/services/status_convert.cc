#include "server/services/status_convert.h"

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/error_subject.h"

namespace kvdepot {
namespace {

// What `draining: ...` waits for is a restart; anything else that is UNAVAILABLE waits for another
// call on the same session, which takes milliseconds.
constexpr absl::string_view kDraining = "draining";
constexpr absl::Duration kRetryAfterDrain = absl::Seconds(1);
constexpr absl::Duration kRetryAfterBusy = absl::Milliseconds(10);
// A second of quiet gives a tenant all that its rate allows at once.
constexpr absl::string_view kRate = "requests_per_second_per_tenant_max";
constexpr absl::Duration kRetryAfterRate = absl::Seconds(1);

struct GrpcError {
  grpc::StatusCode code;
  // ErrorInfo.reason: part of the contract, never renamed.
  const char* reason;
};

GrpcError ToGrpcError(absl::StatusCode code, absl::string_view subject) {
  switch (code) {
    case absl::StatusCode::kOk:
      return {grpc::StatusCode::OK, ""};
    case absl::StatusCode::kCancelled:
      return {grpc::StatusCode::CANCELLED, "CANCELLED"};
    case absl::StatusCode::kInvalidArgument:
      return {grpc::StatusCode::INVALID_ARGUMENT, "INVALID_FIELD"};
    case absl::StatusCode::kDeadlineExceeded:
      return {grpc::StatusCode::DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"};
    case absl::StatusCode::kNotFound:
      return {grpc::StatusCode::NOT_FOUND, "NOT_FOUND"};
    case absl::StatusCode::kAlreadyExists:
      return {grpc::StatusCode::ALREADY_EXISTS, "SESSION_DIFFERS"};
    case absl::StatusCode::kPermissionDenied:
      return {grpc::StatusCode::PERMISSION_DENIED, "ROLE_NOT_ALLOWED"};
    case absl::StatusCode::kResourceExhausted:
      return {grpc::StatusCode::RESOURCE_EXHAUSTED, "LIMIT_REACHED"};
    case absl::StatusCode::kFailedPrecondition:
      return {grpc::StatusCode::FAILED_PRECONDITION, "WRONG_STATE"};
    case absl::StatusCode::kAborted:
      return {grpc::StatusCode::ABORTED, "STALE_GENERATION"};
    case absl::StatusCode::kOutOfRange:
      return {grpc::StatusCode::OUT_OF_RANGE, "OUT_OF_RANGE"};
    case absl::StatusCode::kUnimplemented:
      return {grpc::StatusCode::UNIMPLEMENTED, "NOT_BUILT_IN"};
    case absl::StatusCode::kUnavailable:
      return {grpc::StatusCode::UNAVAILABLE, subject == kDraining ? "DRAINING" : "SESSION_BUSY"};
    case absl::StatusCode::kDataLoss:
      return {grpc::StatusCode::DATA_LOSS, "STORED_BYTES_DAMAGED"};
    case absl::StatusCode::kUnauthenticated:
      return {grpc::StatusCode::UNAUTHENTICATED, "BAD_TOKEN"};
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDoNotUseReservedForFutureExpansionUseDefaultInSwitchInstead_:
      return {grpc::StatusCode::INTERNAL, "INTERNAL"};
  }
  return {grpc::StatusCode::INTERNAL, "INTERNAL"};
}

// Cuts between characters: half of one would make the message invalid UTF-8, which protobuf
// refuses.
absl::string_view Cut(absl::string_view message) {
  if (message.size() <= kStatusMessageBytesMax) return message;
  size_t end = kStatusMessageBytesMax;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;
  return message.substr(0, end);
}

void AddRetryInfo(absl::Duration delay, google::rpc::Status& status) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  retry.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(delay % absl::Seconds(1))));
  status.add_details()->PackFrom(retry);
}

void AddDetails(grpc::StatusCode code, const std::string& subject, google::rpc::Status& status) {
  if (code == grpc::StatusCode::INVALID_ARGUMENT || code == grpc::StatusCode::OUT_OF_RANGE) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(subject);
    violation->set_description(status.message());
    status.add_details()->PackFrom(bad);
  } else if (code == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    google::rpc::QuotaFailure quota;
    auto* violation = quota.add_violations();
    violation->set_subject(subject);
    violation->set_description(status.message());
    status.add_details()->PackFrom(quota);
    if (subject == kRate) AddRetryInfo(kRetryAfterRate, status);
  } else if (code == grpc::StatusCode::UNAVAILABLE) {
    AddRetryInfo(subject == kDraining ? kRetryAfterDrain : kRetryAfterBusy, status);
  }
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::string_view message = Cut(status.message());
  const std::string subject(ErrorSubject(message));
  const GrpcError error = ToGrpcError(status.code(), subject);

  google::rpc::Status rich;
  rich.set_code(error.code);
  rich.set_message(message.data(), message.size());
  google::rpc::ErrorInfo info;
  info.set_reason(error.reason);
  info.set_domain("kvdepot");
  if (!subject.empty()) (*info.mutable_metadata())["subject"] = subject;
  rich.add_details()->PackFrom(info);
  AddDetails(error.code, subject, rich);
  return grpc::Status(error.code, rich.message(), rich.SerializeAsString());
}

}  // namespace kvdepot
