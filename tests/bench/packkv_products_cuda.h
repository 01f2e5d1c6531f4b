// The two products of attention over `packkv` tokens as kernels of their own, K q and w V, for the
// comparison with matrix-vector products that the paper makes (PackKV, arXiv 2512.24449).
#ifndef KVDEPOT_TESTS_BENCH_PACKKV_PRODUCTS_CUDA_H_
#define KVDEPOT_TESTS_BENCH_PACKKV_PRODUCTS_CUDA_H_

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvdepot {

inline constexpr int kProductSegmentsMax = 128;

// Bodies of segments of 1,024 tokens, packs of 16, codes of at most 4 bits (K) and 3 (V); device
// memory.
struct PackKvTokens {
  const std::byte* bodies[kProductSegmentsMax] = {};  // of segment after segment
  uint32_t tokens = 0;                                // a multiple of 1,024
  uint32_t kv_heads = 0;                              // 1, 2, 4 or 8
  uint32_t rows = 0;                                  // query rows of a KV head, 1 to 4
  uint32_t k_bits = 0;
  uint32_t v_bits = 0;
  // Of the largest tiles.
  uint32_t k_tile_bytes = 0;
  uint32_t v_tile_bytes = 0;
  // Programmatic dependent launch: begins beside the end of the launch before on the stream, and
  // waits for that on the device once it has asked for its first tokens.
  bool overlaps_launch_before = true;
};

// scores [kv_head][row][token] = k . q, of q [kv_head][row][channel]. head_dim 128.
cudaError_t LaunchKeyProducts(const PackKvTokens& of, const __half* q, __half* scores,
                              int multiprocessors, cudaStream_t stream);

// Bytes that LaunchValueProducts works with, zero at first.
size_t ValueProductsWorkspaceBytes(int multiprocessors);

// output [kv_head][row][channel] = sum over tokens of w v, of w [kv_head][row][token].
cudaError_t LaunchValueProducts(const PackKvTokens& of, const __half* w, float* output,
                                std::byte* workspace, int multiprocessors, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_BENCH_PACKKV_PRODUCTS_CUDA_H_
