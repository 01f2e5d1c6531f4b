#include <cstdint>

#include "gpu/tokens_cuda.h"

namespace kvdepot {
namespace {

constexpr int kThreads = 256;

// Sizes in 16-byte words: a row of 64 channels has 8 of 2-byte values.
struct Rows {
  uint32_t row_words;
  uint32_t kv_heads;
  uint32_t count;
  uint32_t capacity;
  uint32_t first_slot;
};

// Word `index` counts through K, then V, in client order; the result is its place in the extent.
__device__ uint64_t ExtentWord(const Rows& rows, uint32_t index) {
  const uint32_t word = index % rows.row_words;
  uint32_t rest = index / rows.row_words;
  const uint32_t head = rest % rows.kv_heads;
  rest /= rows.kv_heads;
  const uint32_t token = rest % rows.count;
  const uint32_t tensor = rest / rows.count;
  const uint64_t row = (uint64_t{2} * head + tensor) * rows.capacity + rows.first_slot + token;
  return row * rows.row_words + word;
}

__global__ void __launch_bounds__(kThreads)
    ScatterKernel(Rows rows, const uint4* __restrict__ k, const uint4* __restrict__ v,
                  uint4* __restrict__ extent) {
  const uint32_t half = rows.row_words * rows.kv_heads * rows.count;
  const uint32_t step = gridDim.x * kThreads;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < 2 * half; i += step) {
    extent[ExtentWord(rows, i)] = i < half ? k[i] : v[i - half];
  }
}

Rows RowsOf(const LayerShape& shape, DType dtype, int count, int capacity, int first_slot) {
  return {static_cast<uint32_t>(static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype) / 16),
          static_cast<uint32_t>(shape.kv_heads), static_cast<uint32_t>(count),
          static_cast<uint32_t>(capacity), static_cast<uint32_t>(first_slot)};
}

// One word a thread up to a few blocks a multiprocessor; more would only queue.
unsigned Blocks(const Rows& rows) {
  const uint32_t words = 2 * rows.row_words * rows.kv_heads * rows.count;
  const uint32_t blocks = (words + kThreads - 1) / kThreads;
  return blocks < 1024 ? blocks : 1024;
}

}  // namespace

cudaError_t ScatterTokens(const LayerShape& shape, DType dtype, const std::byte* k,
                          const std::byte* v, int count, std::byte* extent, int capacity,
                          int first_slot, cudaStream_t stream) {
  const Rows rows = RowsOf(shape, dtype, count, capacity, first_slot);
  ScatterKernel<<<Blocks(rows), kThreads, 0, stream>>>(rows, reinterpret_cast<const uint4*>(k),
                                                       reinterpret_cast<const uint4*>(v),
                                                       reinterpret_cast<uint4*>(extent));
  return cudaGetLastError();
}

}  // namespace kvdepot
