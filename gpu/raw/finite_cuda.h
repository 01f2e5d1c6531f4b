// Finds values that are not finite in device memory.
#ifndef KVDEPOT_GPU_RAW_FINITE_CUDA_H_
#define KVDEPOT_GPU_RAW_FINITE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/shape.h"

namespace kvdepot::raw {

// Queues on `stream`: *first (device memory) becomes the index of the first infinity or NaN among
// `count` values, or `count` if there is none. `values` is memory that the device reads, aligned to
// 16 bytes. Does not wait, may be captured in a graph; the error is that of queueing.
cudaError_t FindNonFinite(const std::byte* values, DType dtype, size_t count, uint64_t* first,
                          cudaStream_t stream);

// One run of exact tokens: `tensors` arrays of `tensor_bytes`, so far apart, the first at `values`.
// All are multiples of 16.
struct FiniteRun {
  const std::byte* values;
  uint64_t distance_bytes;
  uint32_t tensors;
  uint32_t tensor_bytes;
};

// Queues likewise: *first becomes the index of the first of `count` >= 1 runs (device memory) with
// such a value, or `count`.
cudaError_t FindNonFiniteRun(const FiniteRun* runs, DType dtype, size_t count, uint64_t* first,
                             cudaStream_t stream);

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_FINITE_CUDA_H_
