// One attend launch: a batch of sessions whose layers have the same shape and dtype.
//
// Everything is device memory and nothing is read on the host, so a launch may be captured into a
// CUDA graph and replayed while cells change (attend_directory.h). Repeats its bits for the same
// batch: who reads what depends on the batch alone, and partial results are merged in index order.
#ifndef KVDEPOT_GPU_ATTEND_LAUNCH_H_
#define KVDEPOT_GPU_ATTEND_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/shape.h"

namespace kvdepot {

// AttendRows of one launch.
inline constexpr uint32_t kLaunchRowsMax = 4096;

struct AttendBatch {
  LayerShape shape;
  DType dtype = DType::kBf16;
  const AttendCell* cells = nullptr;
  const AttendRow* rows = nullptr;  // [row_count], 1 .. kLaunchRowsMax
  uint32_t row_count = 0;
  // Largest record of any head; 0 without `planes` runs.
  uint32_t record_bytes_max = 0;
  // AttendWorkspaceBytes() bytes, zero before the first launch; launches that may run side by side
  // need one each.
  std::byte* workspace = nullptr;
};

// Query rows that an AttendRow holds.
int AttendRowsPerTile(const LayerShape& shape, int query_tokens_max);

size_t AttendWorkspaceBytes();

// Enqueues the launch. `multiprocessors`: of the current device.
cudaError_t LaunchAttend(const AttendBatch& batch, int rows_per_tile, int multiprocessors,
                         cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_LAUNCH_H_
