// Stored tokens back to values in client order, on the GPU; rounded as decode_runs_cpu.h does.
#ifndef KVDEPOT_GPU_DECODE_RUNS_CUDA_H_
#define KVDEPOT_GPU_DECODE_RUNS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/device_head.h"
#include "gpu/shape.h"
#include "gpu/token_run.h"

namespace kvdepot {

struct DecodeRun {
  TokenRun run;  // its capacity is at most kSegmentTokensMax
  // Index of the run's first token in the output.
  uint64_t target = 0;
  // Heads of the run's layer if it is not the batch's; device memory, as there.
  const DeviceHead* heads = nullptr;
};

struct DecodeBatch {
  int kv_heads = 0;
  int head_dim = 0;
  DType dtype = DType::kBf16;  // of exact extents and raw segments
  // Device memory: one entry a KV head, as FillDeviceHeads fills them. May be null if no run is a
  // `planes` segment.
  const DeviceHead* heads = nullptr;
  // Device memory; data of each run is aligned to 128 bytes.
  const DecodeRun* runs = nullptr;
  int run_count = 0;  // at most 65,535
  // Not smaller than any run's count.
  int run_tokens_max = 0;
  // [token][kv_head][channel] of `to`, dense, aligned to 16 bytes, in memory that the device
  // writes.
  DType to = DType::kBf16;
  std::byte* k = nullptr;
  std::byte* v = nullptr;
};

// Queues on `stream` the decoding of all runs. Does not wait, allocates nothing, may be captured in
// a graph (the counts above are read when it is queued, the runs when it runs); the error is that
// of queueing.
cudaError_t DecodeRuns(const DecodeBatch& batch, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DECODE_RUNS_CUDA_H_
