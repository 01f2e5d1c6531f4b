// Whether a file was changed or replaced since somebody looked.
#ifndef KVDEPOT_SERVER_FILE_STAMP_H_
#define KVDEPOT_SERVER_FILE_STAMP_H_

#include <sys/stat.h>

#include <string>
#include <tuple>

namespace kvdepot {

// Of the file that a path leads to, symbolic links followed: Kubernetes exchanges those. All files
// that are not there have one stamp.
class FileStamp {
 public:
  FileStamp() = default;
  explicit FileStamp(const std::string& path) {
    struct stat facts = {};
    if (stat(path.c_str(), &facts) != 0) return;
    // Not of its modification time: who copies a file may set that as it was.
    stamp_ = {facts.st_dev, facts.st_ino, facts.st_size, facts.st_ctim.tv_sec,
              facts.st_ctim.tv_nsec};
  }
  bool operator==(const FileStamp& other) const { return stamp_ == other.stamp_; }

 private:
  std::tuple<dev_t, ino_t, off_t, time_t, long> stamp_;  // NOLINT(google-runtime-int): stat's.
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_FILE_STAMP_H_
