// absl::Status -> grpc::Status: the only place where a domain error becomes a gRPC error.
//
// What the error is about (error_subject.h) becomes a typed detail in the trailer
// `grpc-status-details-bin`, so that clients need not parse text.
#ifndef KVDEPOT_SERVER_SERVICES_STATUS_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_STATUS_CONVERT_H_

#include <grpcpp/support/status.h>

#include <cstddef>

#include "absl/status/status.h"

namespace kvdepot {

// Longer messages are cut: they travel as a header, and HTTP/2 peers bound those (8 KiB by
// default).
inline constexpr size_t kStatusMessageBytesMax = 1024;

// Details: ErrorInfo always; BadRequest for INVALID_ARGUMENT and OUT_OF_RANGE, QuotaFailure for
// RESOURCE_EXHAUSTED, RetryInfo for UNAVAILABLE.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_STATUS_CONVERT_H_
