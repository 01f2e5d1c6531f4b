#include "client/rpc_decode_stream.h"

#include "client/grpc_status.h"

namespace kvdepot {

RpcDecodeStream::RpcDecodeStream(const Connection& connection, absl::Time deadline)
    : stub_(v1::KvDepotService::NewStub(connection.channel())) {
  connection.Prepare(&context_, deadline);
  stream_ = stub_->Decode(&context_);
}

RpcDecodeStream::~RpcDecodeStream() {
  if (ended_) return;
  context_.TryCancel();
  End().IgnoreError();  // CANCELLED, or whatever came first: nobody is left to ask.
}

absl::StatusOr<v1::DecodeResponse> RpcDecodeStream::Step(const v1::DecodeRequest& request) {
  v1::DecodeResponse response;
  if (!ended_ && stream_->Write(request) && stream_->Read(&response)) return response;
  const absl::Status status = End();
  if (!status.ok()) return status;
  return absl::FailedPreconditionError("the decode stream has ended");
}

absl::Status RpcDecodeStream::Finish() {
  if (!ended_) stream_->WritesDone();
  return End();
}

absl::Status RpcDecodeStream::End() {
  if (!ended_) {
    ended_ = true;
    // gRPC's Finish waits until every answer is read.
    v1::DecodeResponse unread;
    while (stream_->Read(&unread)) {
    }
    end_status_ = FromGrpcStatus(stream_->Finish());
  }
  return end_status_;
}

}  // namespace kvdepot
