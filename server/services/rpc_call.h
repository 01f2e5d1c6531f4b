// One RPC from arrival to answer: who calls, counted at both ends, logged if it fails.
#ifndef KVDEPOT_SERVER_SERVICES_RPC_CALL_H_
#define KVDEPOT_SERVER_SERVICES_RPC_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "server/engine.h"
#include "server/rpc_method.h"
#include "server/services/buffer_convert.h"
#include "server/services/mapping_convert.h"
#include "server/services/service_context.h"
#include "server/session_types.h"

namespace kvdepot {

// A member of the call's reactor, so that `rpc` outlives it. Finish comes exactly once.
class RpcCall {
 public:
  RpcCall(const ServiceContext& context, RpcMethod method, grpc::CallbackServerContext* rpc);
  ~RpcCall();
  RpcCall(const RpcCall&) = delete;
  RpcCall& operator=(const RpcCall&) = delete;

  // UNAUTHENTICATED, or OK: then `caller` is complete.
  const absl::Status& admission() const { return admission_; }
  const Caller& caller() const { return caller_; }
  bool cancelled() const { return rpc_->IsCancelled(); }
  const ServiceContext& context() const { return context_; }
  // Of the caller's buffers.
  BufferFinder buffer_finder() const {
    return [this](const v1::BufferRange& range) -> absl::StatusOr<BufferRef> {
      absl::Status status = CheckEpoch(range.epoch(), context_.build.epoch);
      if (!status.ok()) return status;
      return context_.engine->FindBuffer(caller_, range.lease_id(), range.buffer());
    };
  }

  // What the reactor's Finish takes.
  grpc::Status Finish(const absl::Status& status);

 private:
  const ServiceContext& context_;
  const RpcMethod method_;
  grpc::CallbackServerContext* const rpc_;
  Caller caller_;
  absl::Status admission_;
  bool finished_ = false;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_RPC_CALL_H_
