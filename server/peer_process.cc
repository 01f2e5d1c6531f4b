#include "server/peer_process.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace kvdepot {
namespace {

// Linux 6.5; Debian 12's headers are older.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
// Linux 6.9: a pidfd's inode is its process's alone.
constexpr long kPidfdFileSystem = 0x50494446;

bool HasProcessInode(int pidfd) {
  struct statfs info = {};
  return fstatfs(pidfd, &info) == 0 && info.f_type == kPidfdFileSystem;
}

bool SameInode(int a, int b) {
  struct stat info_a = {};
  struct stat info_b = {};
  return fstat(a, &info_a) == 0 && fstat(b, &info_b) == 0 && info_a.st_ino == info_b.st_ino &&
         info_a.st_dev == info_b.st_dev;
}

// What /proc says of it: above 0 for a process that we see, -1 for one that has ended, 0 for one in
// another namespace. NOT_FOUND for a descriptor of something else.
absl::StatusOr<int> PidOf(int pidfd) {
  std::ifstream file(absl::StrCat("/proc/self/fdinfo/", pidfd));
  for (std::string line; std::getline(file, line);) {
    absl::string_view text = line;
    int pid = 0;
    if (absl::ConsumePrefix(&text, "Pid:") && absl::SimpleAtoi(text, &pid)) return pid;
  }
  return absl::NotFoundError("no pidfd");
}

}  // namespace

absl::StatusOr<FileDescriptor> IdentifyPeer(int socket, FileDescriptor claimed) {
  if (!claimed) return absl::InvalidArgumentError("pidfd: none, must be sent with the hello");
  const absl::StatusOr<int> claimed_pid = PidOf(claimed.get());
  if (!claimed_pid.ok()) {
    return absl::InvalidArgumentError("pidfd: another kind of descriptor, must be a pidfd");
  }
  const absl::Status another = absl::InvalidArgumentError(absl::StrCat(
      "pidfd: of process ", *claimed_pid, ", must be of the one that connected the life socket"));

  int peer_pidfd = -1;
  socklen_t size = sizeof(peer_pidfd);
  FileDescriptor peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &peer_pidfd, &size) == 0) {
    peer = FileDescriptor(peer_pidfd);
    if (HasProcessInode(claimed.get()) && HasProcessInode(peer.get())) {
      if (!SameInode(claimed.get(), peer.get())) return another;
      // Not the one that was sent, which could be a thread's.
      return peer;
    }
  }
  ucred credentials = {};
  size = sizeof(credentials);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0 ||
      credentials.pid <= 0) {
    return absl::FailedPreconditionError(
        "pidfd: the process is in a PID namespace that the daemon does not see, must be in the "
        "daemon's or one below it on a kernel before Linux 6.9");
  }
  if (*claimed_pid != credentials.pid) return another;
  return claimed;
}

}  // namespace kvdepot
