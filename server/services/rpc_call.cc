#include "server/services/rpc_call.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gpu/check.h"
#include "server/services/status_convert.h"

namespace kvdepot {
namespace {

absl::string_view Authorization(const grpc::CallbackServerContext& rpc) {
  const auto found = rpc.client_metadata().find("authorization");
  if (found == rpc.client_metadata().end()) return "";
  return absl::string_view(found->second.data(), found->second.size());
}

absl::Time Deadline(const grpc::CallbackServerContext& rpc) {
  // gRPC says "none" with the end of the clock.
  if (rpc.deadline() == std::chrono::system_clock::time_point::max()) {
    return absl::InfiniteFuture();
  }
  return absl::FromChrono(rpc.deadline());
}

}  // namespace

RpcCall::RpcCall(const ServiceContext& context, RpcMethod method, grpc::CallbackServerContext* rpc)
    : context_(context), method_(method), rpc_(rpc) {
  context_.metrics->OnRpcStarted(method_);
  absl::StatusOr<std::string> tenant = context_.tenants->Get()->Identify(Authorization(*rpc));
  admission_ = tenant.status();
  if (!tenant.ok()) return;
  caller_.tenant = *std::move(tenant);
  caller_.deadline = Deadline(*rpc);
  caller_.cancelled = [rpc] { return rpc->IsCancelled(); };
}

RpcCall::~RpcCall() { KVDEPOT_CHECK(finished_); }

grpc::Status RpcCall::Finish(const absl::Status& status) {
  KVDEPOT_CHECK(!finished_);
  finished_ = true;
  context_.metrics->OnRpcHandled(method_, status);
  if (status.ok()) return grpc::Status::OK;
  grpc::Status answer = ToGrpcStatus(status);
  context_.log->InfoBounded("refused", {{"method", std::string(RpcMethodName(method_))},
                                        {"tenant", caller_.tenant},
                                        {"code", absl::StatusCodeToString(status.code())},
                                        {"message", answer.error_message()}});
  return answer;
}

}  // namespace kvdepot
