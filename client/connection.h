// One gRPC channel to a daemon: what all calls of a client have in common. Internal to the client
// library.
#ifndef KVDEPOT_CLIENT_CONNECTION_H_
#define KVDEPOT_CLIENT_CONNECTION_H_

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/security/credentials.h"

namespace kvdepot {

// Thread-safe.
class Connection {
 public:
  // Does not connect yet: the first call does. Null credentials: plain.
  Connection(const std::string& target,
             const std::shared_ptr<grpc::ChannelCredentials>& credentials, absl::string_view token);

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Sets deadline and identity of a call.
  void Prepare(grpc::ClientContext* context, absl::Time deadline) const;

  // One attempt.
  absl::Status CallOnce(absl::Time deadline,
                        absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const;

  // As many attempts as client/retry.h allows: only for idempotent calls. `call` must reset what a
  // failed attempt left.
  absl::Status CallRetrying(absl::Time deadline,
                            absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const;

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::string authorization_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CONNECTION_H_
