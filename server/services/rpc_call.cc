#include "server/services/rpc_call.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gpu/check.h"
#include "server/role.h"
#include "server/services/status_convert.h"
#include "server/services/trace_context.h"
#include "server/tenants.h"

namespace kvdepot {
namespace {

// Empty: not sent.
absl::string_view Metadata(const grpc::CallbackServerContext& rpc, const char* name) {
  const auto found = rpc.client_metadata().find(name);
  if (found == rpc.client_metadata().end()) return "";
  return absl::string_view(found->second.data(), found->second.size());
}

absl::Status CheckRole(Role role, RpcMethod method) {
  if (MayCall(role, method)) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("authorization: a token of role ", RoleName(role),
                                                  ", ", RpcMethodName(method), " needs ",
                                                  RoleName(NeededRole(method))));
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
  absl::StatusOr<Identity> identity =
      context_.tenants->Get()->Identify(Metadata(*rpc, "authorization"));
  admission_ = identity.status();
  if (!admission_.ok()) return;
  caller_.tenant = std::move(identity->tenant);
  admission_ = CheckRole(identity->role, method_);
  if (admission_.ok()) admission_ = context_.limits->BeginCall(caller_.tenant);
  if (!admission_.ok()) return;
  is_counted_ = true;
  caller_.deadline = Deadline(*rpc);
  caller_.cancelled = [rpc] { return rpc->IsCancelled(); };
}

RpcCall::~RpcCall() {
  KVDEPOT_CHECK(finished_);
  AnswerIsOut();
}

absl::Status RpcCall::CountRequest() { return context_.limits->CountRequest(caller_.tenant); }

void RpcCall::BeginStep() {
  step_begun_ = context_.clock->Now();
  if (!is_awaited_) context_.answers->Add();
  is_awaited_ = true;
}

void RpcCall::AnswerIsOut() {
  if (is_awaited_) context_.answers->Remove();
  is_awaited_ = false;
}

void RpcCall::EndStep(const absl::Status& status) {
  const absl::Duration duration = context_.clock->Now() - step_begun_;
  step_begun_ = absl::InfiniteFuture();
  const absl::Duration threshold = context_.options.slow_request_threshold;
  if (threshold == absl::ZeroDuration() || duration <= threshold) return;
  LogEnd("slow", status, {"seconds", absl::StrCat(absl::ToDoubleSeconds(duration))});
}

void RpcCall::LogEnd(absl::string_view event, const absl::Status& status, LogField what) const {
  LogFields fields = {{"method", std::string(RpcMethodName(method_))},
                      {"tenant", caller_.tenant},
                      {"code", absl::StatusCodeToString(status.code())},
                      std::move(what)};
  const TraceContext trace = ParseTraceparent(Metadata(*rpc_, "traceparent"));
  if (!trace.trace_id.empty()) {
    fields.push_back({"trace_id", std::string(trace.trace_id)});
    fields.push_back({"parent_id", std::string(trace.parent_id)});
  }
  context_.log->InfoBounded(event, std::move(fields));
}

grpc::Status RpcCall::Finish(const absl::Status& status) {
  KVDEPOT_CHECK(!finished_);
  finished_ = true;
  EndStep(status);
  if (is_counted_) context_.limits->EndCall(caller_.tenant);
  context_.metrics->OnRpcHandled(method_, status);
  if (status.ok()) return grpc::Status::OK;
  grpc::Status answer = ToGrpcStatus(status);
  // Whoever has no token floods no tenant's lines.
  LogEnd(caller_.tenant.empty() ? "unauthenticated" : "refused", status,
         {"message", answer.error_message()});
  return answer;
}

}  // namespace kvdepot
