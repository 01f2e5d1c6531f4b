// A calibration file (proto/kvdepot/v1/calibration.proto), for layers of a dump.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_CALIBRATION_FILE_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_CALIBRATION_FILE_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/codec_bench/kv_dump.h"
#include "client/codec_bench/stored_tokens.h"
#include "kvdepot/v1/calibration.pb.h"

namespace kvdepot {

// INVALID_ARGUMENT: `file` holds no calibration.
absl::StatusOr<v1::Calibration> ParseCalibration(absl::string_view file);

// Of one layer. A calibration of as many layers as the dump has is of those layers, in order;
// another one is of the whole model. INVALID_ARGUMENT naming the first entry that does not fit.
absl::StatusOr<ProfileCalibrations> CalibrationsOf(const v1::Calibration& calibration,
                                                   const KvDump& dump, const DumpLayer& layer);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_CALIBRATION_FILE_H_
