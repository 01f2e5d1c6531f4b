// gRPC's standard health check (grpc.health.v1) of a daemon. It needs no token.
#ifndef KVDEPOT_CLIENT_HEALTH_H_
#define KVDEPOT_CLIENT_HEALTH_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class ChannelCredentials;
}  // namespace grpc

namespace kvdepot {

// OK if the daemon serves. UNAVAILABLE if it says that it does not, or nobody answers.
// `credentials` as Client::Options'.
absl::Status CheckHealth(const std::string& target,
                         const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                         absl::Time deadline);

// Returns once the daemon serves, or DEADLINE_EXCEEDED. For whoever has just started one: there
// need not be a socket yet.
absl::Status WaitUntilHealthy(const std::string& target,
                              const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                              absl::Time deadline);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_HEALTH_H_
