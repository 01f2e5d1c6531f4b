// Certificates of the daemon's TCP listeners.
#ifndef KVDEPOT_SERVER_TLS_H_
#define KVDEPOT_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"

namespace kvdepot {

// Paths of PEM files.
struct TlsFiles {
  // The daemon's certificate, and those between it and its authority.
  std::string certificate;
  std::string key;
  // Of the authorities that clients' certificates come from. Empty: clients need none.
  std::string client_authorities;
};

// INVALID_ARGUMENT names the file and what is wrong with it: it cannot be read, is no PEM, has
// expired, or the key belongs to another certificate.
absl::Status CheckTlsFiles(const TlsFiles& files);

// Files that change are read again within kTlsRefreshSeconds, for connections that follow; while
// they do not fit together those before count.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsFiles& files);

inline constexpr unsigned kTlsRefreshSeconds = 2;

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_TLS_H_
