#include "client/cli/daemon_flags.h"

#include <fstream>
#include <iterator>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/target.h"

ABSL_FLAG(std::string, target, "",
          "The daemon: the path of its Unix socket, unix:///path or host:port. Empty: where "
          "kvdepotd of the same user listens by default.");
ABSL_FLAG(std::string, token_file, "", "File that holds the bearer token. Empty: no token.");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(10), "Deadline of each call to the daemon.");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of a table.");

namespace kvdepot::cli {

std::string Target() { return TargetOf(absl::GetFlag(FLAGS_target)); }

absl::StatusOr<Client::Options> ClientOptions() {
  Client::Options options;
  const std::string token_file = absl::GetFlag(FLAGS_token_file);
  if (!token_file.empty()) {
    const absl::StatusOr<std::string> token = ReadFile(token_file);
    if (!token.ok()) return token.status();
    options.token = std::string(absl::StripAsciiWhitespace(*token));
  }
  return options;
}

absl::StatusOr<std::unique_ptr<Client>> ConnectToDaemon() {
  const absl::StatusOr<Client::Options> options = ClientOptions();
  if (!options.ok()) return options.status();
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(Target(), *options, Deadline());
  if (!client.ok()) {
    return absl::Status(client.status().code(),
                        absl::StrCat(Target(), ": ", client.status().message()));
  }
  return client;
}

absl::Time Deadline() { return absl::Now() + absl::GetFlag(FLAGS_timeout); }

bool WantsJson() { return absl::GetFlag(FLAGS_json); }

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  return std::string(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
}

}  // namespace kvdepot::cli
