// The place of a Unix socket: who may reach it is who may call the daemon.
#ifndef KVDEPOT_SERVER_UNIX_SOCKET_H_
#define KVDEPOT_SERVER_UNIX_SOCKET_H_

#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

// The path in "unix:PATH" or "unix:///PATH"; empty for any other address.
std::string UnixSocketPath(absl::string_view address);

// This process's claim on a socket's path: a lock on the file PATH.lock, which stays behind.
// Without it two daemons that start together could both find a stale socket, and whichever ended
// first would take the other's away.
class UnixSocketClaim {
 public:
  UnixSocketClaim() = default;
  explicit UnixSocketClaim(int fd) : fd_(fd) {}
  UnixSocketClaim(UnixSocketClaim&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UnixSocketClaim& operator=(UnixSocketClaim&& other) noexcept;
  ~UnixSocketClaim();

 private:
  int fd_ = -1;
};

// Makes `path` free to bind, for as long as the claim lives: creates its parent folder with mode
// 0700 if it is missing, and removes a socket that nobody listens on. FAILED_PRECONDITION: a daemon
// has it, something else is there, the folder belongs to somebody else, or the path is too long.
absl::StatusOr<UnixSocketClaim> ClaimUnixSocket(const std::string& path);

// What is created while this lives is for the owner alone: a socket gets mode 0600 from the moment
// that it exists. The mask is the process's: for start-up, before other threads create files.
class OwnerOnlyUmask {
 public:
  OwnerOnlyUmask() : before_(umask(0177)) {}
  ~OwnerOnlyUmask() { umask(before_); }
  OwnerOnlyUmask(const OwnerOnlyUmask&) = delete;
  OwnerOnlyUmask& operator=(const OwnerOnlyUmask&) = delete;

 private:
  const mode_t before_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_UNIX_SOCKET_H_
