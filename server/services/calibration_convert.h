// Calibration files (proto/kvdepot/v1/calibration.proto) to plain data.
#ifndef KVDEPOT_SERVER_SERVICES_CALIBRATION_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_CALIBRATION_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/calibration_store.h"

namespace kvdepot {

// Parses, checks sizes and numbers, and names the calibration by the SHA-256 of `file`.
// INVALID_ARGUMENT names the first field that is wrong; whether orders are permutations and pattern
// numbers exist is the store's to say.
absl::StatusOr<Calibration> ParseCalibration(const std::string& file);

void ToProto(const CalibrationSummary& summary, v1::CalibrationInfo* info);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_CALIBRATION_CONVERT_H_
