// What a daemon's refusal says, without gRPC types: code, message and typed details.
//
// gRPC carries details as one serialised google.rpc.Status; absl::Status carries them as payloads.
// Each detail of the former becomes a payload of the latter, under its type URL, so that nothing is
// lost on the way to the caller.
#ifndef KVDEPOT_CLIENT_GRPC_STATUS_H_
#define KVDEPOT_CLIENT_GRPC_STATUS_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "grpcpp/support/status.h"

namespace kvdepot {

absl::Status FromGrpcStatus(const grpc::Status& status);

// How long the daemon asks to wait before the same call again. Empty: it did not say (no
// RetryInfo), which is also the case where no daemon answered at all.
absl::optional<absl::Duration> RetryDelay(const absl::Status& status);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_GRPC_STATUS_H_
