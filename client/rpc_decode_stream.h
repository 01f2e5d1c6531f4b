// DecodeStream over gRPC. Internal to the client library: keeps gRPC out of decode_stream.h.
#ifndef KVDEPOT_CLIENT_RPC_DECODE_STREAM_H_
#define KVDEPOT_CLIENT_RPC_DECODE_STREAM_H_

#include <memory>

#include "client/connection.h"
#include "client/decode_stream.h"
#include "grpcpp/client_context.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"

namespace kvdepot {

class RpcDecodeStream final : public DecodeStream {
 public:
  RpcDecodeStream(const Connection& connection, absl::Time deadline);
  ~RpcDecodeStream() override;

  absl::StatusOr<v1::DecodeResponse> Step(const v1::DecodeRequest& request) override;
  absl::Status Finish() override;

 private:
  // Ends the call and returns its status; later calls return the same.
  absl::Status End();

  grpc::ClientContext context_;
  std::unique_ptr<v1::KvDepotService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::DecodeRequest, v1::DecodeResponse>> stream_;
  bool ended_ = false;
  absl::Status end_status_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_RPC_DECODE_STREAM_H_
