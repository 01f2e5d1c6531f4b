#include "server/services/lease_call.h"

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "server/services/field_error.h"
#include "server/services/mapping_convert.h"
#include "server/services/session_convert.h"

namespace kvdepot {
namespace {

// Messages to a client that does not read; it is asked again and again for what it does not do.
constexpr size_t kOutgoingMax = 64;

// Without tokens there is one tenant, which is whoever may open the daemon's socket.
absl::Status CheckMayMap(const Options& options, const std::string& tenant) {
  if (options.tokens_file.empty()) return absl::OkStatus();
  const std::vector<std::string> allowed = absl::StrSplit(options.mapping_tenants, ',');
  if (std::find(allowed.begin(), allowed.end(), tenant) != allowed.end()) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "tenant: ", tenant, ", is none of the daemon's mapping_tenants, who map sessions"));
}

}  // namespace

class LeaseCall::Stream final : public LeaseStream {
 public:
  explicit Stream(LeaseCall* call) : call_(call) {}

  // The call is about to be deleted.
  void Detach() {
    MutexLock lock(mutex_);
    call_ = nullptr;
  }

  void OnAttached() override {
    v1::OpenLeaseResponse response;
    response.mutable_attached();
    MutexLock lock(mutex_);
    if (call_ != nullptr) call_->Send(response);
  }
  void OnUnmapWanted(const std::vector<std::string>& session_ids) override {
    v1::OpenLeaseResponse response;
    for (const std::string& id : session_ids) response.mutable_unmap()->add_session_ids(id);
    MutexLock lock(mutex_);
    if (call_ != nullptr) call_->Send(response);
  }
  void OnEnded(const absl::Status& reason) override {
    MutexLock lock(mutex_);
    if (call_ != nullptr) call_->End(reason);
  }

 private:
  Mutex mutex_;
  LeaseCall* call_ ABSL_GUARDED_BY(mutex_);
};

LeaseCall::LeaseCall(const ServiceContext& context, grpc::CallbackServerContext* rpc)
    : call_(context, RpcMethod::kOpenLease, rpc), stream_(std::make_shared<Stream>(this)) {
  if (call_.admission().ok()) {
    StartRead(&received_);
  } else {
    End(call_.admission());
  }
}

void LeaseCall::OnReadDone(bool ok) {
  if (!ok) {
    return EndLease(call_.cancelled() ? absl::CancelledError("the client left") : absl::OkStatus());
  }
  WireMessage<v1::OpenLeaseRequest> received;
  received.Parse(&received_);
  const absl::Status status = Act(received);
  if (!status.ok()) return EndLease(status);
  MutexLock lock(mutex_);
  if (!finished_) StartRead(&received_);
}

absl::Status LeaseCall::Act(const WireMessage<v1::OpenLeaseRequest>& received) {
  if (!received.status.ok()) return received.status;
  const v1::OpenLeaseRequest& request = received.message;
  if (request.has_opening() != lease_id_.empty()) {
    return FieldError("opening", request.has_opening() ? "sent again" : "missing",
                      "in the first message and in no other");
  }
  if (request.has_opening()) return Open(request.opening());
  Engine* const engine = call_.context().engine;
  engine->KeepLease(lease_id_);
  switch (request.message_case()) {
    case v1::OpenLeaseRequest::kRetirement:
      return engine->RetireDirectories(lease_id_, request.retirement().session_id(),
                                       request.retirement().version());
    case v1::OpenLeaseRequest::kUnmapped:
      return engine->ForgetSlabs(
          lease_id_, {request.unmapped().slabs().begin(), request.unmapped().slabs().end()});
    case v1::OpenLeaseRequest::kHeartbeat:
    case v1::OpenLeaseRequest::kOpening:
    case v1::OpenLeaseRequest::MESSAGE_NOT_SET:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status LeaseCall::Open(const v1::LeaseOpening& opening) {
  absl::Status status = call_.CountRequest();
  if (status.ok()) status = CheckLayoutVersion(opening.layout_version());
  if (!status.ok()) return status;
  const ServiceContext& context = call_.context();
  status = CheckMayMap(context.options, call_.caller().tenant);
  if (!status.ok()) return status;
  if (context.life_socket.empty()) {
    return absl::FailedPreconditionError(
        "listen: the daemon has no Unix socket, which leases need beside them");
  }
  const absl::StatusOr<std::string> lease_id = context.engine->OpenLease(call_.caller(), stream_);
  if (!lease_id.ok()) return lease_id.status();
  lease_id_ = *lease_id;
  v1::OpenLeaseResponse response;
  v1::LeaseOpened* const opened = response.mutable_opened();
  opened->set_lease_id(lease_id_);
  opened->set_epoch(context.build.epoch);
  opened->set_life_socket(context.life_socket);
  if (context.build.backend == "cuda") opened->set_device(context.build.device);
  const absl::Duration timeout = context.options.engine.lease_timeout;
  opened->mutable_timeout()->set_seconds(absl::ToInt64Seconds(timeout));
  opened->mutable_timeout()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(timeout % absl::Seconds(1))));
  Send(response);
  return absl::OkStatus();
}

void LeaseCall::Send(const v1::OpenLeaseResponse& response) {
  bool overflow = false;
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    overflow = outgoing_.size() >= kOutgoingMax;
    if (!overflow) {
      outgoing_.emplace_back();
      SerializeMessage(response, &outgoing_.back());
      if (writing_) return;
      writing_ = true;
      StartWrite(&outgoing_.front());
    }
  }
  if (overflow) {
    End(absl::ResourceExhaustedError(
        absl::StrCat("lease: ", kOutgoingMax, " messages to the client wait, it does not read")));
  }
}

void LeaseCall::OnWriteDone(bool ok) {
  MutexLock lock(mutex_);
  writing_ = false;
  // Where it failed, the reading side ends as well.
  if (!ok || finished_) return;
  outgoing_.pop_front();
  if (outgoing_.empty()) return;
  writing_ = true;
  StartWrite(&outgoing_.front());
}

void LeaseCall::EndLease(const absl::Status& status) {
  // The right first: who has heard of the end has it no more. The engine tells the stream.
  if (!lease_id_.empty()) call_.context().engine->EndLease(lease_id_, status);
  End(status);
}

void LeaseCall::OnCancel() { End(absl::CancelledError("the client left")); }

void LeaseCall::End(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (finished_) return;
    finished_ = true;
  }
  Finish(call_.Finish(status));
}

// Not before: whoever the engine tells of the end may come from any thread, and the right ends with
// the last message at the latest.
void LeaseCall::OnDone() {
  stream_->Detach();
  if (!lease_id_.empty()) {
    call_.context().engine->EndLease(lease_id_, absl::CancelledError("the stream has ended"));
  }
  delete this;
}

}  // namespace kvdepot
