// One RPC from arrival to answer: who calls and may they, counted at both ends, logged if it fails
// or is slow.
#ifndef KVDEPOT_SERVER_SERVICES_RPC_CALL_H_
#define KVDEPOT_SERVER_SERVICES_RPC_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/engine.h"
#include "server/logging.h"
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

  // UNAUTHENTICATED, PERMISSION_DENIED to the caller's role, RESOURCE_EXHAUSTED naming
  // calls_per_tenant_max, or OK: then `caller` is complete.
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

  // A unary call, or a message of a stream. RESOURCE_EXHAUSTED naming
  // requests_per_second_per_tenant_max.
  absl::Status CountRequest();
  // The daemon works for the caller from the first to the second, or to Finish; once it took longer
  // than Options::slow_request_threshold, that is logged. One step at a time. From the first on the
  // end of the daemon waits for this call, until it is gone or AnswerIsOut.
  void BeginStep();
  void EndStep(const absl::Status& status = absl::OkStatus());

  // Of a stream that may go on: all that the client was to get for its steps is sent.
  void AnswerIsOut();

  // What the reactor's Finish takes.
  grpc::Status Finish(const absl::Status& status);

 private:
  void LogEnd(absl::string_view event, const absl::Status& status, LogField what) const;

  const ServiceContext& context_;
  const RpcMethod method_;
  grpc::CallbackServerContext* const rpc_;
  Caller caller_;
  absl::Status admission_;
  bool is_counted_ = false;
  bool is_awaited_ = false;
  absl::Time step_begun_ = absl::InfiniteFuture();
  bool finished_ = false;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_RPC_CALL_H_
