#include "gpu/regular_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {
namespace {

absl::Status Refused(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", why));
}

absl::Status Failed(const std::string& path) {
  const std::string text = absl::StrCat(path, ": ", std::strerror(errno));
  return errno == ENOENT ? absl::NotFoundError(text) : absl::InvalidArgumentError(text);
}

}  // namespace

absl::StatusOr<std::string> ReadRegularFile(const std::string& path, uint64_t bytes_max) {
  // open() of a pipe would wait for its writer.
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
  struct stat facts = {};
  if (!file || fstat(file.get(), &facts) != 0) return Failed(path);
  if (!S_ISREG(facts.st_mode)) return Refused(path, "is no regular file");
  const auto too_large = [&](uint64_t bytes) {
    return Refused(path, absl::StrCat(bytes, " bytes, must be at most ", bytes_max));
  };
  const auto size = static_cast<uint64_t>(facts.st_size);
  if (size > bytes_max) return too_large(size);
  std::string content;
  char piece[16384];
  for (;;) {
    const ssize_t count = read(file.get(), piece, sizeof(piece));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return Failed(path);
    if (count == 0) return content;
    content.append(piece, static_cast<size_t>(count));
    if (content.size() > bytes_max) return too_large(content.size());
  }
}

}  // namespace kvdepot
