// The place of a Unix socket: who may reach it is who may call the daemon.
#ifndef KVDEPOT_SERVER_UNIX_SOCKET_H_
#define KVDEPOT_SERVER_UNIX_SOCKET_H_

#include <sys/stat.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

// The path in "unix:PATH" or "unix:///PATH"; empty for any other address.
std::string UnixSocketPath(absl::string_view address);

// Makes `path` free to bind: creates its parent folder with mode 0700 if it is missing, and removes
// a socket that nobody listens on. FAILED_PRECONDITION: a daemon listens there, something else is
// there, the folder belongs to somebody else, or the path is too long.
absl::Status PrepareUnixSocket(const std::string& path);

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
