#include "server/services/append_call.h"

#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/services/field_error.h"
#include "server/services/session_convert.h"
#include "server/services/token_convert.h"

namespace kvdepot {

AppendCall::AppendCall(const ServiceContext& context, grpc::CallbackServerContext* rpc,
                       grpc::ByteBuffer* response)
    : call_(context, RpcMethod::kAppend, rpc), response_(response) {
  if (call_.admission().ok()) {
    StartRead(&received_);
  } else {
    End(call_.admission());
  }
}

void AppendCall::OnReadDone(bool ok) {
  if (ok) messages_.spare()->Parse(&received_);
  Act(messages_.Received(ok));
}

void AppendCall::Act(Messages::Next next) {
  switch (next) {
    case Messages::Next::kWait:
      return;
    case Messages::Next::kWork:
      StartRead(&received_);
      return StoreChunk(messages_.current());
    case Messages::Next::kEnd:
      return FinishAddition();
  }
}

void AppendCall::StoreChunk(const WireMessage<v1::AppendRequest>& received) {
  absl::Status status = call_.CountRequest();
  if (status.ok()) status = received.status;
  if (!status.ok()) return End(status);
  call_.BeginStep();
  const v1::AppendRequest& request = received.message;
  absl::StatusOr<TokenChunk> chunk =
      ToTokenChunk(request, call_.context().options, call_.buffer_finder());
  if (!chunk.ok()) return End(chunk.status());
  if (addition_ == nullptr) {
    if (absl::Status begun = Begin(request); !begun.ok()) return End(begun);
  } else if (!request.session_id().empty() || request.generation() != 0) {
    return End(
        FieldError("session_id", "set again", "empty, like generation, after the first message"));
  }
  addition_->Append(*std::move(chunk), [this](const absl::StatusOr<LayerState>& state) {
    if (!state.ok()) return End(state.status());
    call_.EndStep();
    Act(messages_.Worked());
  });
}

absl::Status AppendCall::Begin(const v1::AppendRequest& first) {
  if (absl::Status status = CheckSessionId(first.session_id()); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Engine::Addition>> addition =
      call_.context().engine->BeginAppend(call_.caller(), first.session_id(), first.generation());
  if (!addition.ok()) return addition.status();
  addition_ = *std::move(addition);
  return absl::OkStatus();
}

void AppendCall::FinishAddition() {
  // The stream ends with a half-close or with the client; only the first completes the addition.
  if (call_.cancelled()) return End(absl::CancelledError("the client left; its chunks stay"));
  if (addition_ == nullptr)
    return End(FieldError("chunk", "no message", "in at least one message"));
  call_.BeginStep();
  addition_->Finish([this](absl::StatusOr<std::vector<std::pair<int, LayerState>>> layers) {
    if (!layers.ok()) return End(layers.status());
    v1::AppendResponse response;
    for (const auto& [layer, state] : *layers) {
      v1::AppendedLayer* appended = response.add_layers();
      appended->set_layer(static_cast<uint32_t>(layer));
      *appended->mutable_state() = ToProto(state);
    }
    SerializeMessage(response, response_);
    End(absl::OkStatus());
  });
}

void AppendCall::End(const absl::Status& status) {
  messages_.Stop();
  // Whoever has the answer may call again at once: the right of mutation must be free by then.
  addition_.reset();
  Finish(call_.Finish(status));
}

}  // namespace kvdepot
