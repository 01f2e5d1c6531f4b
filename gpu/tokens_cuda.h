// Tokens from the order in which clients send them to the rows of an exact extent, on the device.
#ifndef KVDEPOT_GPU_TOKENS_CUDA_H_
#define KVDEPOT_GPU_TOKENS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "gpu/shape.h"

namespace kvdepot {

// Queues on `stream`: `count` tokens of `k` and `v`, each [token][kv_head][channel], dense, aligned
// to 16 bytes, in memory that the device reads, go to slots first_slot.. of the exact extent
// `extent` of `capacity` tokens. Does not wait.
cudaError_t ScatterTokens(const LayerShape& shape, DType dtype, const std::byte* k,
                          const std::byte* v, int count, std::byte* extent, int capacity,
                          int first_slot, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_TOKENS_CUDA_H_
