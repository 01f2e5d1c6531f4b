// The flags that every command has: which daemon, as whom, how long, how to print.
#ifndef KVDEPOT_CLIENT_CLI_DAEMON_FLAGS_H_
#define KVDEPOT_CLIENT_CLI_DAEMON_FLAGS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"

namespace kvdepot::cli {

// --target in gRPC's notation; a plain absolute path means a Unix socket.
std::string Target();

// What the flags name, read. NOT_FOUND naming a file that cannot be.
absl::StatusOr<Client::Options> ClientOptions();
// The files themselves; empty: not named.
std::string TokenFile();
std::string AuthorityFile();
std::string CertificateFile();
std::string KeyFile();
// A connected client with that token.
absl::StatusOr<std::unique_ptr<Client>> ConnectToDaemon();

// --timeout from now.
absl::Time Deadline();

// --json.
bool WantsJson();

// The whole file, or NOT_FOUND naming it.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_DAEMON_FLAGS_H_
