#include "server/services/fetch_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/services/buffer_convert.h"
#include "server/services/field_error.h"
#include "server/services/session_convert.h"
#include "server/services/token_convert.h"
#include "server/services/wire_message.h"

namespace kvdepot {

FetchCall::FetchCall(const ServiceContext& context, grpc::CallbackServerContext* rpc,
                     const grpc::ByteBuffer* request)
    : call_(context, RpcMethod::kFetch, rpc) {
  absl::Status status = call_.admission();
  if (status.ok()) status = call_.CountRequest();
  if (status.ok()) {
    WireMessage<v1::FetchRequest> received;
    received.Parse(RequestBytes(request));
    status = received.status.ok() ? ReadRequest(received.message) : received.status;
  }
  {
    MutexLock lock(mutex_);
    failure_ = std::move(status);
  }
  Advance();
}

absl::Status FetchCall::ReadRequest(const v1::FetchRequest& request) {
  if (absl::Status status = CheckSessionId(request.session_id()); !status.ok()) return status;
  // First: after a restart they tell, and a session that is not there does not.
  if (request.has_k_range() != request.has_v_range()) {
    return FieldError("v_range", request.has_v_range() ? "set" : "not set", "as k_range is");
  }
  absl::StatusOr<CallOutput> k = ToCallOutput(
      "k", request.has_k_range() ? &request.k_range() : nullptr, call_.buffer_finder());
  if (!k.ok()) return k.status();
  absl::StatusOr<CallOutput> v = ToCallOutput(
      "v", request.has_v_range() ? &request.v_range() : nullptr, call_.buffer_finder());
  if (!v.ok()) return v.status();
  const absl::StatusOr<SessionInfo> session =
      call_.context().engine->GetSession(call_.caller(), request.session_id(), "");
  if (!session.ok()) return session.status();
  if (request.layer() >= session->layers.size()) {
    return FieldError("layer", request.layer(), absl::StrCat("less than ", session->layers.size()));
  }
  const absl::StatusOr<DType> dtype =
      request.dtype() == v1::DTYPE_UNSPECIFIED ? session->spec.dtype : ToDType(request.dtype());
  if (!dtype.ok()) return dtype.status();
  const uint64_t layer_tokens = session->layers[request.layer()].token_count;
  if (request.position() > layer_tokens) {
    return absl::OutOfRangeError(absl::StrCat("position: ", request.position(),
                                              ", must be at most the layer's ", layer_tokens));
  }
  token_bytes_ = session->spec.layers[request.layer()].row_values() * DTypeBytes(*dtype);
  FetchRange range;
  range.session_id = request.session_id();
  range.layer = static_cast<int>(request.layer());
  range.position = request.position();
  range.token_count =
      request.token_count() == 0 ? layer_tokens - request.position() : request.token_count();
  range.dtype = *dtype;
  range.k = *std::move(k);
  range.v = *std::move(v);
  MutexLock lock(mutex_);
  remaining_ = std::move(range);
  return absl::OkStatus();
}

void FetchCall::Advance() {
  bool read = false, write = false, end = false;
  FetchRange range;
  absl::Status status;
  {
    MutexLock lock(mutex_);
    const bool sending = failure_.ok();
    if (sending && ready_ && !writing_) {
      read_response_.Swap(&sent_response_);
      ready_ = false;
      write = writing_ = true;
    }
    if (sending && !ready_ && !reading_ && remaining_.token_count > 0) {
      range = remaining_;
      read = reading_ = true;
    }
    end = !ended_ && !reading_ && !writing_;
    ended_ = ended_ || end;
    status = failure_;
  }
  // Without the lock: each of these may lead back here. After the last one `this` may be gone.
  if (write) StartWrite(&sent_response_);
  if (read) Read(std::move(range));
  if (end) Finish(call_.Finish(status));
}

void FetchCall::Read(FetchRange range) {
  const int layer = range.layer;
  call_.BeginStep();
  call_.context().engine->Fetch(
      call_.caller(), std::move(range),
      [this, layer](absl::StatusOr<FetchedTokens> tokens) { OnRead(layer, std::move(tokens)); });
}

void FetchCall::OnRead(int layer, absl::StatusOr<FetchedTokens> tokens) {
  const absl::Status status = tokens.status();
  call_.EndStep(status);
  uint64_t token_count = 0;
  if (status.ok()) {
    token_count = tokens->token_count;
    v1::FetchResponse response;
    ToProto(layer, *std::move(tokens), response.mutable_chunk());
    SerializeMessage(response, &read_response_);
  }
  {
    MutexLock lock(mutex_);
    reading_ = false;
    remaining_.position += token_count;
    remaining_.token_count -= token_count;
    remaining_.is_rest = true;
    for (CallOutput* output : {&remaining_.k, &remaining_.v}) {
      if (output->is_in_reply()) continue;
      output->data += token_count * token_bytes_;
      output->size_bytes -= token_count * token_bytes_;
    }
    ready_ = status.ok();
    if (!status.ok()) failure_ = status;
  }
  Advance();
}

void FetchCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(mutex_);
    writing_ = false;
    if (!ok) failure_ = absl::CancelledError("the client left");
  }
  Advance();
}

}  // namespace kvdepot
