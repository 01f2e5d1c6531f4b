#include "client/cli/daemon_flags.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/target.h"
#include "grpcpp/security/credentials.h"

ABSL_FLAG(std::string, target, "",
          "The daemon: the path of its Unix socket, unix:///path or host:port. Empty: where "
          "kvdepotd of the same user listens by default.");
ABSL_FLAG(std::string, token_file, "", "File that holds the bearer token. Empty: no token.");
ABSL_FLAG(std::string, ca_file, "",
          "PEM file of the authority of the daemon's certificate, for host:port. Empty: no TLS.");
ABSL_FLAG(std::string, cert_file, "", "PEM file of a certificate to show. Empty: none.");
ABSL_FLAG(std::string, key_file, "", "PEM file of that certificate's key.");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(10), "Deadline of each call to the daemon.");
ABSL_FLAG(bool, json, false, "Print one JSON object instead of a table.");

namespace kvdepot::cli {

std::string Target() { return TargetOf(absl::GetFlag(FLAGS_target)); }

namespace {

// The file that a flag names; empty if it names none.
absl::StatusOr<std::string> ReadIfNamed(const std::string& path) {
  if (path.empty()) return path;
  return ReadFile(path);
}

// Null: no TLS.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials() {
  const absl::StatusOr<std::string> ca = ReadIfNamed(AuthorityFile());
  if (!ca.ok()) return ca.status();
  const absl::StatusOr<std::string> cert = ReadIfNamed(CertificateFile());
  if (!cert.ok()) return cert.status();
  const absl::StatusOr<std::string> key = ReadIfNamed(KeyFile());
  if (!key.ok()) return key.status();
  if (ca->empty()) return std::shared_ptr<grpc::ChannelCredentials>();
  return grpc::SslCredentials({*ca, *key, *cert});
}

}  // namespace

absl::StatusOr<Client::Options> ClientOptions() {
  Client::Options options;
  if (!TokenFile().empty()) {
    const absl::StatusOr<std::string> token = ReadFile(TokenFile());
    if (!token.ok()) return token.status();
    options.token = std::string(absl::StripAsciiWhitespace(*token));
  }
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = Credentials();
  if (!credentials.ok()) return credentials.status();
  options.credentials = *std::move(credentials);
  return options;
}

std::string TokenFile() { return absl::GetFlag(FLAGS_token_file); }
std::string AuthorityFile() { return absl::GetFlag(FLAGS_ca_file); }
std::string CertificateFile() { return absl::GetFlag(FLAGS_cert_file); }
std::string KeyFile() { return absl::GetFlag(FLAGS_key_file); }

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
  // Reading one throws. A pipe is as good as a file here: --token_file=<(...).
  std::error_code cannot_be_seen;
  if (std::filesystem::is_directory(path, cannot_be_seen))
    return absl::InvalidArgumentError(absl::StrCat(path, ": is a folder"));
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrCat("cannot open ", path));
  return std::string(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
}

}  // namespace kvdepot::cli
