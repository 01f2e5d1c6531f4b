#include "server/watched_files.h"

namespace kvdepot {

absl::Status WatchedFiles::Load() {
  MutexLock lock(mutex_);
  stamps_ = Stamps();
  last_ = load_();
  return last_;
}

std::optional<absl::Status> WatchedFiles::LoadIfNeeded() {
  MutexLock lock(mutex_);
  std::vector<FileStamp> stamps = Stamps();
  const bool changed = !(stamps == stamps_);
  if (!changed && last_.ok()) return std::nullopt;
  stamps_ = std::move(stamps);
  const absl::Status before = std::exchange(last_, load_());
  if (!changed && last_ == before) return std::nullopt;
  return last_;
}

std::vector<FileStamp> WatchedFiles::Stamps() const {
  return std::vector<FileStamp>(paths_.begin(), paths_.end());
}

}  // namespace kvdepot
