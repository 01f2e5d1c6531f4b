// Reactor of a unary RPC: its request, its reply, and how it ends. Lives until gRPC is done with
// the call, so an engine's callback may hold a plain pointer to it.
#ifndef KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_
#define KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "absl/status/status.h"
#include "server/services/rpc_call.h"
#include "server/services/wire_message.h"

namespace kvdepot {

template <typename Request, typename Response>
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  UnaryCall(const ServiceContext& context, RpcMethod method, grpc::CallbackServerContext* rpc,
            const grpc::ByteBuffer* request, grpc::ByteBuffer* response)
      : call_(context, method, rpc), admission_(call_.admission()), response_bytes_(response) {
    if (admission_.ok()) admission_ = call_.CountRequest();
    if (!admission_.ok()) return;
    call_.BeginStep();
    request_.Parse(RequestBytes(request));
    admission_ = request_.status;
  }

  // Errors as RpcCall's, INVALID_ARGUMENT for bytes that are no request, or OK: then `caller` and
  // `request` are complete.
  const absl::Status& admission() const { return admission_; }
  const Caller& caller() const { return call_.caller(); }
  BufferFinder buffer_finder() const { return call_.buffer_finder(); }
  const Request& request() const { return request_.message; }
  Response* response() { return &response_; }

  // Answers, from any thread, exactly once. The reply must be complete.
  void End(const absl::Status& status) {
    if (status.ok()) SerializeMessage(response_, response_bytes_);
    Finish(call_.Finish(status));
  }

 private:
  void OnDone() override { delete this; }

  RpcCall call_;
  absl::Status admission_;
  WireMessage<Request> request_;
  Response response_;
  grpc::ByteBuffer* const response_bytes_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_UNARY_CALL_H_
