#include "client/health.h"

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "client/connection.h"
#include "client/grpc_status.h"
#include "google/protobuf/wrappers.pb.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/impl/codegen/proto_utils.h"

namespace kvdepot {
namespace {

// Debian has no health.proto, and its two messages need none: on the wire HealthCheckRequest is one
// string and HealthCheckResponse one enumeration, both in field 1, as in these.
using HealthCheckRequest = google::protobuf::StringValue;
using HealthCheckResponse = google::protobuf::UInt32Value;
using HealthStub = grpc::TemplatedGenericStub<HealthCheckRequest, HealthCheckResponse>;

constexpr char kMethod[] = "/grpc.health.v1.Health/Check";
constexpr uint32_t kServing = 1;
// Between two questions to a daemon that answers, but does not serve yet.
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

absl::Status Check(const Connection& connection, absl::Time deadline, bool wait_for_ready) {
  grpc::ClientContext context;
  connection.Prepare(&context, deadline);
  context.set_wait_for_ready(wait_for_ready);
  const HealthCheckRequest whole_server;
  HealthCheckResponse response;
  grpc::Status status;
  absl::Notification done;
  HealthStub stub(connection.channel());
  stub.UnaryCall(&context, kMethod, {}, &whole_server, &response, [&](grpc::Status result) {
    status = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  if (!status.ok()) return FromGrpcStatus(status);
  if (response.value() == kServing) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the daemon answers that it does not serve (status ", response.value(), ")"));
}

}  // namespace

absl::Status CheckHealth(const std::string& target,
                         const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                         absl::Time deadline) {
  return Check(Connection(target, credentials, ""), deadline, /*wait_for_ready=*/false);
}

absl::Status WaitUntilHealthy(const std::string& target,
                              const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                              absl::Time deadline) {
  const Connection connection(target, credentials, "");
  for (;;) {
    absl::Status status = Check(connection, deadline, /*wait_for_ready=*/true);
    if (!absl::IsUnavailable(status)) return status;
    absl::SleepFor(kPollInterval);
  }
}

}  // namespace kvdepot
