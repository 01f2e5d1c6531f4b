#include "client/connection.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/grpc_status.h"
#include "client/retry.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace kvdepot {
namespace {

// Replies above this are refused: the largest are batches of attention outputs.
constexpr int kReplyBytesMax = 64 << 20;
// gRPC's own default waits a second before it tries a broken connection again; a daemon restarts
// faster.
constexpr int kReconnectMsFirst = 100;
constexpr int kReconnectMsMax = 2000;

grpc::ChannelArguments Arguments() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kReplyBytesMax);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kReconnectMsFirst);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kReconnectMsMax);
  // Without this, clients of one process and target share a connection behind the caller's back.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return arguments;
}

}  // namespace

Connection::Connection(const std::string& target,
                       const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                       absl::string_view token)
    : channel_(grpc::CreateCustomChannel(
          target, credentials != nullptr ? credentials : grpc::InsecureChannelCredentials(),
          Arguments())),
      authorization_(token.empty() ? "" : absl::StrCat("Bearer ", token)) {}

void Connection::Prepare(grpc::ClientContext* context, absl::Time deadline) const {
  context->set_deadline(absl::ToChronoTime(deadline));
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
}

absl::Status Connection::CallOnce(
    absl::Time deadline, absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const {
  grpc::ClientContext context;
  Prepare(&context, deadline);
  return FromGrpcStatus(call(&context));
}

absl::Status Connection::CallRetrying(
    absl::Time deadline, absl::FunctionRef<grpc::Status(grpc::ClientContext*)> call) const {
  Retry retry(deadline);
  for (;;) {
    absl::Status status = CallOnce(deadline, call);
    const absl::optional<absl::Duration> delay = retry.DelayAfter(status, absl::Now());
    if (!delay) return status;
    absl::SleepFor(*delay);
  }
}

}  // namespace kvdepot
