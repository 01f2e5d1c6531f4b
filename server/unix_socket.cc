#include "server/unix_socket.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace kvdepot {
namespace {

// Of a group's entry, with the names of its members.
constexpr size_t kGroupBytesMax = 1 << 20;

// sun_path with its terminating zero.
constexpr size_t kPathBytesMax = sizeof(sockaddr_un::sun_path) - 1;

absl::Status Fail(const std::string& path, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat("listen: ", path, ": ", why));
}

absl::Status FailWithErrno(const std::string& path, absl::string_view what) {
  return Fail(path, absl::StrCat(what, ": ", std::strerror(errno)));
}

absl::Status Share(const std::string& path, const std::string& group_name, mode_t mode) {
  if (!group_name.empty()) {
    std::vector<char> names(kGroupBytesMax);
    group entry = {};
    group* found = nullptr;
    getgrnam_r(group_name.c_str(), &entry, names.data(), names.size(), &found);
    if (found == nullptr)
      return absl::FailedPreconditionError(
          absl::StrCat("socket_group: ", group_name, ", is no group of this machine"));
    if (chown(path.c_str(), static_cast<uid_t>(-1), entry.gr_gid) != 0)
      return FailWithErrno(path, absl::StrCat("cannot be given to group ", group_name));
  }
  if (chmod(path.c_str(), mode) != 0) return FailWithErrno(path, "cannot be given its mode");
  return absl::OkStatus();
}

absl::Status PrepareFolder(const std::string& folder, const SocketAccess& access) {
  if (folder.empty()) return absl::OkStatus();
  if (mkdir(folder.c_str(), 0700) == 0)
    return access.group.empty() ? absl::OkStatus() : Share(folder, access.group, 0750);
  if (errno != EEXIST) return FailWithErrno(folder, "cannot be created");
  struct stat info = {};
  if (stat(folder.c_str(), &info) != 0) return FailWithErrno(folder, "cannot be read");
  if (!S_ISDIR(info.st_mode)) return Fail(folder, "is not a folder");
  // Its owner could put a socket of his own in our socket's place.
  if (info.st_uid != geteuid() && info.st_uid != 0) return Fail(folder, "belongs to another user");
  return absl::OkStatus();
}

// Whether somebody accepts connections there.
bool IsListening(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return true;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const bool refused =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
      errno == ECONNREFUSED;
  close(fd);
  return !refused;
}

}  // namespace

std::string UnixSocketPath(absl::string_view address) {
  if (!absl::ConsumePrefix(&address, "unix:")) return "";
  absl::ConsumePrefix(&address, "//");
  return std::string(address);
}

UnixSocketClaim& UnixSocketClaim::operator=(UnixSocketClaim&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

UnixSocketClaim::~UnixSocketClaim() {
  if (fd_ >= 0) close(fd_);
}

absl::optional<mode_t> ParseSocketMode(absl::string_view text) {
  mode_t mode = 0;
  for (const char digit : text) {
    if (digit < '0' || digit > '7') return absl::nullopt;
    mode = mode * 8 + static_cast<mode_t>(digit - '0');
    if (mode > 0777) return absl::nullopt;
  }
  if (text.empty()) return absl::nullopt;
  return mode;
}

absl::Status ShareUnixSocket(const std::string& path, const SocketAccess& access) {
  return Share(path, access.group, access.mode);
}

absl::StatusOr<UnixSocketClaim> ClaimUnixSocket(const std::string& path,
                                                const SocketAccess& access) {
  if (path.size() > kPathBytesMax) {
    return Fail(path,
                absl::StrCat(path.size(), " bytes, a socket's path has at most ", kPathBytesMax));
  }
  const size_t slash = path.rfind('/');
  if (slash != std::string::npos) {
    if (absl::Status status = PrepareFolder(path.substr(0, slash), access); !status.ok())
      return status;
  }
  const std::string lock = path + ".lock";
  const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return FailWithErrno(lock, "cannot be opened");
  UnixSocketClaim claim(fd);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) return Fail(path, "another process listens there");
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return claim;
    return FailWithErrno(path, "cannot be read");
  }
  if (!S_ISSOCK(info.st_mode)) return Fail(path, "exists and is not a socket");
  if (IsListening(path)) return Fail(path, "another process listens there");
  if (unlink(path.c_str()) != 0) return FailWithErrno(path, "a stale socket cannot be removed");
  return claim;
}

}  // namespace kvdepot
