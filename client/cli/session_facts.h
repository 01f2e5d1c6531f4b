// What is said about a session in more than one command.
#ifndef KVDEPOT_CLIENT_CLI_SESSION_FACTS_H_
#define KVDEPOT_CLIENT_CLI_SESSION_FACTS_H_

#include <string>

#include "absl/status/statusor.h"
#include "client/client.h"

namespace kvdepot::cli {

// By name, or else by id.
absl::StatusOr<v1::Session> FindSession(const Client& client, const std::string& name_or_id);

// All in: every byte charged to the session, over all values that it holds. 0 for an empty session.
double BitsPerValue(const v1::Session& session);

// Bytes that an uncompressed cache of the session's dtype would take, over bytes charged. 0 for an
// empty session.
double Ratio(const v1::Session& session);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_SESSION_FACTS_H_
