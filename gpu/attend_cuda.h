// Attention of a batch on the GPU for callers whose queries and results lie in host memory, or in
// memory of the device as it is.
#ifndef KVDEPOT_GPU_ATTEND_CUDA_H_
#define KVDEPOT_GPU_ATTEND_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/attend_launch.h"
#include "gpu/backend.h"
#include "gpu/device_memory.h"

namespace kvdepot {

// Works on one stream, one call at a time. Sessions of one shape and dtype share a launch. Repeats
// its bits for the same batch (attend_launch.h).
class CudaAttention {
 public:
  // `stream` outlives this and belongs to the current device.
  static absl::StatusOr<CudaAttention> Create(cudaStream_t stream);

  // Runs of `items` are device memory, q and results what they say. Returns when the results are
  // there. RESOURCE_EXHAUSTED if there is no memory for a batch of this size, INTERNAL if the
  // device fails.
  absl::Status Attend(absl::Span<const AttendItem> items);

 private:
  CudaAttention(cudaStream_t stream, int multiprocessors, DeviceBuffer workspace)
      : stream_(stream), multiprocessors_(multiprocessors), workspace_(std::move(workspace)) {}

  absl::Status Launch(absl::Span<const AttendItem* const> items);

  cudaStream_t stream_;
  int multiprocessors_;
  DeviceBuffer workspace_;
  // Directory and queries, as they are made on the host and as kernels read them.
  PinnedBuffer host_input_;
  DeviceBuffer device_input_;
  PinnedBuffer host_results_;
  DeviceBuffer device_results_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_CUDA_H_
