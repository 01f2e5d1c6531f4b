// One attend launch: a batch of sessions whose layers have the same shape and dtype.
//
// Everything is device memory and nothing is read on the host, so a launch may be captured into a
// CUDA graph and replayed while cells change (attend_directory.h). Repeats its bits for the same
// batch: who reads what depends on the batch alone, and partial results are merged in index order.
// Blocks wait for each other's partial results, so the launch is cooperative: it begins once the
// device has room for all of its blocks.
#ifndef KVDEPOT_GPU_ATTEND_LAUNCH_H_
#define KVDEPOT_GPU_ATTEND_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/shape.h"

namespace kvdepot {

// A row of a launch is a tile of query rows of one session that read one KV head together. Rows go
// by cell, then by KV head, then by tile: tiles of a head lie side by side, since they read the
// same bytes at about the same time.
inline constexpr uint32_t kLaunchRowsMax = 1024;
// Multiprocessors that a launch uses at most.
inline constexpr uint32_t kLaunchMultiprocessorsMax = 160;
// Cost of a block of `packkv` (attend_plan.h): its work, beside which its bytes count little.
constexpr uint32_t PackKvBlockCostBytes(int head_dim) {
  return static_cast<uint32_t>(head_dim) * 384;
}

struct AttendLaunch {
  LayerShape shape;
  DType dtype = DType::kBf16;
  // Of the cells' sealed segments that are not raw: `planes` or `packkv`.
  Codec codec = Codec::kPlanes;
  int rows_per_tile = 0;  // AttendRowsPerTile
  uint32_t tiles = 0;     // of each cell and KV head
  const AttendCell* cells = nullptr;
  // [cell][kv_heads]: BlockCostBytes of the head; anything for cells without `planes` runs.
  const uint32_t* block_cost_bytes = nullptr;
  // The kernel before this on the stream makes the cells and says when it has begun
  // (cudaTriggerProgrammaticLaunchCompletion): this one is launched beside it and waits for its
  // end.
  bool follows_cells = false;
  // Rows first_row .. first_row + row_count - 1 of all, 1 .. kLaunchRowsMax of them.
  uint32_t first_row = 0;
  uint32_t row_count = 0;
  // Of the largest record; 0 without `planes` runs.
  uint32_t record_bytes_max = 0;
  // AttendWorkspaceBytes() bytes, zero before the first launch; launches that may run side by side
  // need one each.
  std::byte* workspace = nullptr;
};

// Query rows that a tile holds at most.
int AttendRowsPerTile(const LayerShape& shape, int query_tokens, Codec codec = Codec::kPlanes);

size_t AttendWorkspaceBytes();

// Enqueues the launch. `multiprocessors`: of the current device, all of which the launch may use.
cudaError_t LaunchAttend(const AttendLaunch& batch, int multiprocessors, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_LAUNCH_H_
