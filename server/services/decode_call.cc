#include "server/services/decode_call.h"

#include <utility>

#include "absl/status/statusor.h"
#include "server/services/token_convert.h"

namespace kvdepot {

DecodeCall::DecodeCall(const ServiceContext& context, grpc::CallbackServerContext* rpc)
    : call_(context, RpcMethod::kDecode, rpc) {
  if (call_.admission().ok()) {
    StartRead(&received_);
  } else {
    End(call_.admission());
  }
}

void DecodeCall::OnReadDone(bool ok) {
  if (ok) messages_.spare()->Parse(&received_);
  Act(messages_.Received(ok));
}

void DecodeCall::Act(Messages::Next next) {
  switch (next) {
    case Messages::Next::kWait:
      return;
    case Messages::Next::kWork:
      StartRead(&received_);
      return Step(messages_.current());
    case Messages::Next::kEnd:
      return End(call_.cancelled() ? absl::CancelledError("the client left") : absl::OkStatus());
  }
}

void DecodeCall::Step(const WireMessage<v1::DecodeRequest>& received) {
  absl::Status status = call_.CountRequest();
  if (status.ok()) status = received.status;
  if (!status.ok()) return End(status);
  call_.BeginStep();
  const v1::DecodeRequest& request = received.message;
  const Options& options = call_.context().options;
  const absl::StatusOr<int> layer = ToLayer("layer", request.layer(), options.engine);
  if (!layer.ok()) return End(layer.status());
  absl::StatusOr<std::vector<DecodeStep>> steps =
      ToDecodeSteps(request, options, call_.buffer_finder());
  if (!steps.ok()) return End(steps.status());
  call_.context().engine->Decode(call_.caller(), *layer, request.scale(), *std::move(steps),
                                 [this](absl::StatusOr<std::vector<AttendResult>> results) {
                                   if (!results.ok()) return End(results.status());
                                   Answer(*std::move(results));
                                 });
}

void DecodeCall::Answer(std::vector<AttendResult> results) {
  v1::DecodeResponse response;
  for (AttendResult& result : results) ToProto(std::move(result), response.add_items());
  SerializeMessage(response, &response_);
  call_.EndStep();
  StartWrite(&response_);
}

void DecodeCall::OnWriteDone(bool ok) {
  if (!ok) return End(absl::CancelledError("the client left before the answer"));
  call_.AnswerIsOut();
  Act(messages_.Worked());
}

void DecodeCall::End(const absl::Status& status) {
  messages_.Stop();
  Finish(call_.Finish(status));
}

}  // namespace kvdepot
