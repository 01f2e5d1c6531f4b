// Decode: for each message one answer, in order; an error ends the stream.
#ifndef KVDEPOT_SERVER_SERVICES_DECODE_CALL_H_
#define KVDEPOT_SERVER_SERVICES_DECODE_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <vector>

#include "absl/status/status.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/services/read_ahead.h"
#include "server/services/rpc_call.h"
#include "server/services/wire_message.h"

namespace kvdepot {

// Deletes itself when gRPC is done with the call.
class DecodeCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  DecodeCall(const ServiceContext& context, grpc::CallbackServerContext* rpc);

 private:
  using Messages = ReadAhead<WireMessage<v1::DecodeRequest>>;

  void OnReadDone(bool ok) override;
  // A message is dealt with once its answer is out, so one answer buffer is enough.
  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

  void Act(Messages::Next next);
  void Step(const WireMessage<v1::DecodeRequest>& received);
  void Answer(std::vector<AttendResult> results);
  void End(const absl::Status& status);

  RpcCall call_;
  Messages messages_;
  grpc::ByteBuffer received_;
  grpc::ByteBuffer response_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_DECODE_CALL_H_
