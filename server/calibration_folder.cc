#include "server/calibration_folder.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/regular_file.h"
#include "server/services/calibration_convert.h"

namespace kvdepot {
namespace {

absl::Status FileError(const std::string& file, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("calibrations_dir: ", file, ": ", why));
}

absl::Status ReadFile(const std::filesystem::path& path, uint64_t bytes_max,
                      CalibrationStore* store) {
  const absl::StatusOr<std::string> content = ReadRegularFile(path, bytes_max);
  if (!content.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("calibrations_dir: ", content.status().message()));
  }
  const absl::StatusOr<Calibration> calibration = ParseCalibration(*content);
  if (!calibration.ok()) return FileError(path, calibration.status().message());
  absl::Status added = store->AddShared(*calibration);
  return added.ok() ? added : FileError(path, added.message());
}

}  // namespace

absl::StatusOr<int> ReadCalibrationFolder(const std::string& folder, uint64_t calibration_bytes_max,
                                          CalibrationStore* store) {
  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".binpb") files.push_back(entry.path());
  }
  if (error) return FileError(folder, error.message());
  // Which error is reported first must not depend on the file system.
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) {
    absl::Status status = ReadFile(file, calibration_bytes_max, store);
    if (!status.ok()) return status;
  }
  return static_cast<int>(files.size());
}

}  // namespace kvdepot
