// OpenLease: a process's signs of life on one side, what the engine wants of it on the other.
#ifndef KVDEPOT_SERVER_SERVICES_LEASE_CALL_H_
#define KVDEPOT_SERVER_SERVICES_LEASE_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kvdepot/v1/mapping.pb.h"
#include "server/mapping_types.h"
#include "server/mutex.h"
#include "server/services/rpc_call.h"
#include "server/services/wire_message.h"

namespace kvdepot {

// Deletes itself when gRPC is done with the call. Ends the lease when the stream ends, and the
// stream when the lease ends.
class LeaseCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  LeaseCall(const ServiceContext& context, grpc::CallbackServerContext* rpc);

 private:
  // The engine's way to this call, which may be gone before the engine lets go of it.
  class Stream;

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  absl::Status Act(const WireMessage<v1::OpenLeaseRequest>& received);
  absl::Status Open(const v1::LeaseOpening& opening);
  // RESOURCE_EXHAUSTED: the client does not read.
  void Send(const v1::OpenLeaseResponse& response);
  // The first reason counts.
  void End(const absl::Status& status);
  // Of the thread that reads: likewise, once the lease's right has ended.
  void EndLease(const absl::Status& status);

  RpcCall call_;
  std::shared_ptr<Stream> stream_;
  grpc::ByteBuffer received_;
  // Empty before the opening. Of the reading side alone.
  std::string lease_id_;

  Mutex mutex_;
  std::deque<grpc::ByteBuffer> outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_LEASE_CALL_H_
