#include "client/cli/session_facts.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/cli/daemon_flags.h"

namespace kvdepot::cli {

absl::StatusOr<v1::Session> FindSession(const Client& client, const std::string& name_or_id) {
  absl::StatusOr<v1::Session> session = client.GetSessionByName(name_or_id, Deadline());
  if (!absl::IsNotFound(session.status())) return session;
  // What is no well-formed id may be INVALID_ARGUMENT to the daemon; to the user it is not there.
  session = client.GetSession(name_or_id, Deadline());
  if (absl::IsNotFound(session.status()) || absl::IsInvalidArgument(session.status())) {
    return absl::NotFoundError(absl::StrCat("no session has the name or id '", name_or_id, "'"));
  }
  return session;
}

double BitsPerValue(const v1::Session& session) {
  if (session.logical_bytes() == 0) return 0;
  const double value_bits = session.dtype() == v1::DTYPE_FP32 ? 32 : 16;
  return value_bits * static_cast<double>(session.stored_bytes()) /
         static_cast<double>(session.logical_bytes());
}

double Ratio(const v1::Session& session) {
  if (session.stored_bytes() == 0) return 0;
  return static_cast<double>(session.logical_bytes()) / static_cast<double>(session.stored_bytes());
}

}  // namespace kvdepot::cli
