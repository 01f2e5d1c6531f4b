// Append: a stream of chunks that make up one addition.
#ifndef KVDEPOT_SERVER_SERVICES_APPEND_CALL_H_
#define KVDEPOT_SERVER_SERVICES_APPEND_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/status/status.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/engine.h"
#include "server/services/read_ahead.h"
#include "server/services/rpc_call.h"
#include "server/services/wire_message.h"

namespace kvdepot {

// Deletes itself when gRPC is done with the call.
class AppendCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  AppendCall(const ServiceContext& context, grpc::CallbackServerContext* rpc,
             grpc::ByteBuffer* response);

 private:
  using Messages = ReadAhead<WireMessage<v1::AppendRequest>>;

  void OnReadDone(bool ok) override;
  void OnDone() override { delete this; }

  void Act(Messages::Next next);
  void StoreChunk(const WireMessage<v1::AppendRequest>& received);
  absl::Status Begin(const v1::AppendRequest& first);
  void FinishAddition();
  void End(const absl::Status& status);

  RpcCall call_;
  grpc::ByteBuffer* const response_;
  grpc::ByteBuffer received_;
  Messages messages_;
  // From the first message on. Touched by one step at a time, like the rest of the call.
  std::unique_ptr<Engine::Addition> addition_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_APPEND_CALL_H_
