// Reactor of a unary RPC. Lives until gRPC is done with the call, so an engine's callback may hold
// a plain pointer to it.
#ifndef KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_
#define KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "server/services/rpc_call.h"

namespace kvdepot {

class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const ServiceContext& context, RpcMethod method, grpc::CallbackServerContext* rpc)
      : call_(context, method, rpc) {}

  const absl::Status& admission() const { return call_.admission(); }
  const Caller& caller() const { return call_.caller(); }

  // Answers, from any thread, exactly once. The reply must be complete.
  void End(const absl::Status& status) { Finish(call_.Finish(status)); }

 private:
  void OnDone() override { delete this; }

  RpcCall call_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_
