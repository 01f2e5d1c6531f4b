// kvdepot info: what the daemon is and what it accepts.
#include <cstdio>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/health.h"
#include "client/table.h"

ABSL_FLAG(bool, wait, false, "First wait until the daemon is there and serves, at most --timeout.");

namespace kvdepot::cli {
namespace {

std::string InfoText(const v1::GetServerInfoResponse& info) {
  const v1::Limits& limits = info.limits();
  Table table({{""}, {""}});
  table.AddRow(
      {"version", absl::StrCat(info.version(), ", segment format ", info.format_version())});
  table.AddRow({"epoch", absl::StrFormat("%016x", info.epoch())});
  table.AddRow({"backend", absl::StrCat(info.backend(), " (", info.device(), ")")});
  table.AddRow({"tenant", info.tenant()});
  table.AddRow(
      {"memory",
       absl::StrCat(BytesText(info.used_bytes()), " of ", BytesText(info.budget_bytes()),
                    " in use, this tenant may use ", BytesText(limits.tenant_quota_bytes()))});
  table.AddRow({"metrics", info.metrics_address().empty()
                               ? "switched off"
                               : absl::StrCat("http://", info.metrics_address(), "/metrics")});
  table.AddRow(
      {"sessions", absl::StrCat("at most ", CountText(limits.sessions_per_tenant_max()), ", ",
                                limits.layers_max(), " layers, ",
                                CountText(limits.tokens_per_session_max()), " tokens each")});
  table.AddRow({"messages", absl::StrCat("at most ", BytesText(limits.message_bytes_max()), ", ",
                                         limits.batch_sessions_max(), " sessions, ",
                                         CountText(limits.query_tokens_max()), " query tokens")});
  return table.ToString();
}

}  // namespace

absl::Status RunInfo(const Arguments&) {
  if (absl::GetFlag(FLAGS_wait)) {
    const absl::StatusOr<Client::Options> options = ClientOptions();
    if (!options.ok()) return options.status();
    const absl::Status status = WaitUntilHealthy(Target(), options->credentials, Deadline());
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("no daemon serves at ", Target(), ": ", status.message()));
    }
  }
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const v1::GetServerInfoResponse& info = (*client)->server_info();
  if (WantsJson()) {
    PrintJson(info);
  } else {
    std::fputs(InfoText(info).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
