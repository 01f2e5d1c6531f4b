// Files that are read again when they change: tokens, certificates.
#ifndef KVDEPOT_SERVER_WATCHED_FILES_H_
#define KVDEPOT_SERVER_WATCHED_FILES_H_

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/file_stamp.h"
#include "server/mutex.h"

namespace kvdepot {

// Thread-safe. Blocks as long as a load takes.
class WatchedFiles {
 public:
  // `load` reads the files and takes over what they hold; an error says why it took over nothing.
  // Never called twice at once.
  WatchedFiles(std::vector<std::string> paths, std::function<absl::Status()> load)
      : paths_(std::move(paths)), load_(std::move(load)) {}

  // Whether they have changed or not.
  absl::Status Load();
  // If they have changed, or could not be loaded the last time: the reason may be gone, while the
  // files stay as they are. Nothing: neither, or it says no more than the last time.
  std::optional<absl::Status> LoadIfNeeded();

 private:
  std::vector<FileStamp> Stamps() const;

  const std::vector<std::string> paths_;
  const std::function<absl::Status()> load_;
  Mutex mutex_;
  // Looked at before a load: what comes in between is loaded once more.
  std::vector<FileStamp> stamps_ ABSL_GUARDED_BY(mutex_);
  absl::Status last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_WATCHED_FILES_H_
