// The place of a Unix socket: who may reach it is who may call the daemon.
#ifndef KVDEPOT_SERVER_UNIX_SOCKET_H_
#define KVDEPOT_SERVER_UNIX_SOCKET_H_

#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

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

// Who beside their owner may reach sockets.
struct SocketAccess {
  std::string group;   // empty: nobody's but the process's own
  mode_t mode = 0600;  // of sockets
};

// Octal digits, as chmod takes them; none for anything else, and for more than 0777.
absl::optional<mode_t> ParseSocketMode(absl::string_view text);

// Makes `path` free to bind, for as long as the claim lives: creates its parent folder if it is
// missing, with mode 0700, or of the group and with 0750, and removes a socket that nobody listens
// on. FAILED_PRECONDITION: a daemon has it, something else is there, the folder belongs to somebody
// else, the path is too long, or ShareUnixSocket's.
absl::StatusOr<UnixSocketClaim> ClaimUnixSocket(const std::string& path,
                                                const SocketAccess& access = {});

// Gives a bound socket group and mode. FAILED_PRECONDITION: there is no such group, or this process
// may not.
absl::Status ShareUnixSocket(const std::string& path, const SocketAccess& access);

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
