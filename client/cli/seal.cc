// kvdepot seal SESSION: compresses everything but the window.
#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/cli/command.h"
#include "client/cli/daemon_flags.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/cli/session_facts.h"
#include "client/printable.h"

namespace kvdepot::cli {

absl::Status RunSeal(const Arguments& arguments) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectToDaemon();
  if (!client.ok()) return client.status();
  const absl::StatusOr<v1::Session> before = FindSession(**client, arguments[0]);
  if (!before.ok()) return before.status();
  const absl::StatusOr<v1::Session> after =
      (*client)->SealSession(SessionVersion::Of(*before), Deadline());
  if (!after.ok()) return after.status();
  if (WantsJson()) {
    PrintJson(*after);
  } else {
    std::printf("%s: %s -> %s, %.2f bits a value\n", Printable(after->name()).c_str(),
                BytesText(before->stored_bytes()).c_str(), BytesText(after->stored_bytes()).c_str(),
                BitsPerValue(*after));
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::cli
