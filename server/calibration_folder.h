// Calibrations that every tenant may use: the files *.binpb of one folder, read at start.
#ifndef KVDEPOT_SERVER_CALIBRATION_FOLDER_H_
#define KVDEPOT_SERVER_CALIBRATION_FOLDER_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/calibration_store.h"

namespace kvdepot {

// How many were read. INVALID_ARGUMENT names the first file that is not a calibration and the field
// that is wrong: a daemon that silently lacks one would fail its clients later.
absl::StatusOr<int> ReadCalibrationFolder(const std::string& folder, uint64_t calibration_bytes_max,
                                          CalibrationStore* store);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CALIBRATION_FOLDER_H_
