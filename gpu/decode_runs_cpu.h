// Stored tokens back to values in client order, on the CPU.
#ifndef KVDEPOT_GPU_DECODE_RUNS_CPU_H_
#define KVDEPOT_GPU_DECODE_RUNS_CPU_H_

#include <cstddef>

#include "absl/types/span.h"
#include "gpu/calibration.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"

namespace kvdepot {

// As Backend::Decode.
void DecodeRuns(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
                absl::Span<const TokenRun> runs, DType to, std::byte* k, std::byte* v);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DECODE_RUNS_CPU_H_
