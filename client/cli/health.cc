// kvdepot health: whether the daemon serves; for probes, as it needs no token.
#include "client/health.h"

#include <cstdio>

#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"

namespace kvdepot::cli {

absl::Status RunHealth(const Arguments&) {
  const absl::StatusOr<Client::Options> options = ClientOptions();
  if (!options.ok()) return options.status();
  absl::Status status = CheckHealth(Target(), options->credentials, Deadline());
  if (!status.ok()) return status;
  if (WantsJson()) {
    google::protobuf::Struct object;
    SetBool("serving", true, &object);
    PrintJson(object);
  } else {
    std::puts("serving");
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
