// kvdepot delete SESSION.
#include <cstdio>

#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/printable.h"

namespace kvdepot::cli {

absl::Status RunDelete(const Arguments& arguments) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Session> session = FindSession(**client, arguments[0]);
  if (!session.ok()) return session.status();
  absl::Status status = (*client)->DeleteSession(session->id(), Deadline());
  if (!status.ok()) return status;
  if (WantsJson()) {
    PrintJson(*session);  // What it was.
  } else {
    std::printf("%s: deleted, %s freed\n", Printable(session->name()).c_str(),
                BytesText(session->stored_bytes()).c_str());
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
