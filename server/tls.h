// Certificates of the daemon's TCP listeners.
#ifndef KVDEPOT_SERVER_TLS_H_
#define KVDEPOT_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {

// Paths of PEM files.
struct TlsFiles {
  // The daemon's certificate, and those between it and its authority.
  std::string certificate;
  std::string key;
  // Of the authorities that clients' certificates come from. Empty: clients need none.
  std::string client_authorities;
};

// Copies in memory of files that were right when they were read. gRPC takes over whatever it finds
// in a file that changes, also half of a renewal; it is given these instead.
class TlsCopies {
 public:
  // INVALID_ARGUMENT names the file and what is wrong with it: it cannot be read, is no whole PEM,
  // has expired, or the key belongs to another certificate. RESOURCE_EXHAUSTED: no descriptor or
  // memory for a copy.
  static absl::StatusOr<std::unique_ptr<TlsCopies>> Make(const TlsFiles& files);

  // Reads the files again. What fits together replaces the copies; an error is as above and leaves
  // them. One caller at a time.
  absl::Status Refresh();

  // Of the copies, for this process, while this lives.
  TlsFiles paths() const;

 private:
  explicit TlsCopies(TlsFiles files) : files_(std::move(files)) {}

  const TlsFiles files_;
  // Their numbers stay.
  FileDescriptor certificate_;
  FileDescriptor key_;
  FileDescriptor client_authorities_;
};

// Connections get what `copies` holds kTlsRefreshSeconds before. Keeps their paths, not them.
std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsCopies& copies);

inline constexpr unsigned kTlsRefreshSeconds = 1;

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_TLS_H_
