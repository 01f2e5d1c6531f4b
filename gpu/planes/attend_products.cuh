// Scores and weighted sums of two 64-token blocks of `planes` on the tensor cores, by one warp.
//
// The bytes are the u8 operand A of mma.m16n8k32 as they lie (gpu/FORMAT.md): masking is all that
// unpacking takes. Queries and softmax weights are 16-bit integers, split into a high and a low
// byte that take two columns of operand B: one n-tile serves four query rows. Row r + 8 of A holds
// high nibbles, so everything there carries a factor of 16.
//
// Lane 4 g + t. Accumulators: c0, c1 are the high and low column of query row t, row g; c2, c3 the
// same of row g + 8.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_PRODUCTS_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_PRODUCTS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/format.h"
#include "gpu/planes/pattern.h"

namespace kvdepot::planes {

// A warp reads two blocks at a time, a step: loops, queries and sums are shared, and the one's
// instructions fill the other's waits. A step has 8 chunks of 16 tokens.
inline constexpr int kStepChunks = kStepBlocks * kBlockTokens / 16;

// Softmax weights of a step's tokens as operand B, chunk x at x, and what one unit of them is.
template <int kTiles>
struct StepWeights {
  uint32_t operand[kTiles][kStepChunks];
  float factor[kTiles];
};

// Rows s = 0 (low nibble) and s = 1 (high nibble) of chunk x, left-aligned.
template <int kWidth>
__device__ __forceinline__ void Operand(const uint32_t (&words)[4], int x, uint32_t& low,
                                        uint32_t& high) {
  uint32_t field;
  uint32_t mask;
  if constexpr (kWidth == 4) {
    field = words[x];
    mask = 0x0F0F0F0Fu;
  } else if constexpr (kWidth == 3) {
    constexpr uint32_t kBit = 0x11111111u;
    field =
        x < 3 ? words[x] : (words[0] & kBit) << 1 | (words[1] & kBit) << 2 | (words[2] & kBit) << 3;
    mask = 0x0E0E0E0Eu;
  } else if constexpr (kWidth == 2) {
    field = words[x / 2] << (2 * (x % 2));
    mask = 0x0C0C0C0Cu;
  } else {
    field = words[0] << x;
    mask = 0x08080808u;
  }
  low = field & mask;
  high = field & (mask << 4);
}

template <int kWidth>
__device__ __forceinline__ void LoadKeyWords(const std::byte* group, int lane,
                                             uint32_t (&words)[2][4]) {
  if constexpr (kWidth >= 2) {
    const uint4 first = *reinterpret_cast<const uint4*>(group + 16 * lane);
    words[0][0] = first.x;
    words[1][0] = first.y;
    words[0][1] = first.z;
    words[1][1] = first.w;
  }
  if constexpr (kWidth == 4) {
    const uint4 second = *reinterpret_cast<const uint4*>(group + 512 + 16 * lane);
    words[0][2] = second.x;
    words[1][2] = second.y;
    words[0][3] = second.z;
    words[1][3] = second.w;
  }
  if constexpr (kWidth % 2 == 1) {
    const uint2 rest = *reinterpret_cast<const uint2*>(group + 512 * (kWidth / 2) + 8 * lane);
    words[0][kWidth - 1] = rest.x;
    words[1][kWidth - 1] = rest.y;
  }
}

template <int kWidth>
__device__ __forceinline__ void LoadValueWords(const std::byte* tile, int lane,
                                               uint32_t (&words)[4]) {
  if constexpr (kWidth == 4) {
    const uint4 all = *reinterpret_cast<const uint4*>(tile + 16 * lane);
    words[0] = all.x;
    words[1] = all.y;
    words[2] = all.z;
    words[3] = all.w;
  } else if constexpr (kWidth >= 2) {
    const uint2 first = *reinterpret_cast<const uint2*>(tile + 8 * lane);
    words[0] = first.x;
    words[1] = first.y;
    if constexpr (kWidth == 3) words[2] = *reinterpret_cast<const uint32_t*>(tile + 256 + 4 * lane);
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(tile + 4 * lane);
  }
}

// products += A weights, or = where `first`.
__device__ __forceinline__ void AddWeighted(int32_t (&products)[4], bool first, uint32_t a0,
                                            uint32_t a1, uint32_t a2, uint32_t a3,
                                            const uint32_t* weights) {
  if (first) {
    ptx::MmaUnsignedFirst(products, a0, a1, a2, a3, weights[0], weights[1]);
  } else {
    ptx::MmaUnsigned(products, a0, a1, a2, a3, weights[0], weights[1]);
  }
}
// Of row s of the two: high and low column together.
__device__ __forceinline__ float ProductOf(const int32_t (&products)[4], int s) {
  return static_cast<float>(256 * products[2 * s] + products[2 * s + 1]);
}

// Numbers of groups by width, that of width w in byte w - 1. A head's widths never increase, so
// these and the order of the widths say all.
__device__ __forceinline__ uint32_t WidthCounts(uint32_t widths) {
  uint32_t counts = 0;
  for (; widths != 0; widths >>= 4) {
    if ((widths & 15u) != 0) counts += 1u << (8 * ((widths & 15u) - 1));
  }
  return counts;
}

// The loops below run over groups, not over patterns: a few hundred instructions serve every head,
// and warps that read different heads fetch the same ones. Hence operands and sums lie in shared
// memory, [group][tile][lane], where a loop can index them; each lane sees its own alone.

template <int kTiles, int kWidth>
__device__ __forceinline__ void AddKeyGroups(uint32_t counts, int second, int lane,
                                             const std::byte*& group, const uint2*& q,
                                             int32_t (&scores)[kTiles][kStepChunks][4]) {
#pragma unroll 1
  for (uint32_t count = counts >> (8 * (kWidth - 1)) & 255u; count > 0; --count) {
    uint2 b[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) b[n] = q[32 * n + lane];
    uint32_t words[kStepBlocks][2][4];
#pragma unroll
    for (int block = 0; block < kStepBlocks; ++block)
      LoadKeyWords<kWidth>(group + block * second, lane, words[block]);
#pragma unroll
    for (int x = 0; x < kStepChunks; ++x) {
      uint32_t a[4];
      Operand<kWidth>(words[x / 4][0], x % 4, a[0], a[1]);
      Operand<kWidth>(words[x / 4][1], x % 4, a[2], a[3]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        ptx::MmaSigned(scores[n][x], a[0], a[1], a[2], a[3], b[n].x, b[n].y);
    }
    group += GroupBytes(kWidth);
    q += 32 * kTiles;
  }
}

// Adds q' . codes to scores[n][x]: tokens 16 x + g and 16 x + 8 + g of the step. `planes`: K's of
// the first block, those of the second lie `second` bytes later, or before.
template <int kTiles>
__device__ __forceinline__ void AddKeyProducts(uint32_t counts, int second, int lane,
                                               const std::byte* planes, const uint2* q,
                                               int32_t (&scores)[kTiles][kStepChunks][4]) {
  AddKeyGroups<kTiles, 4>(counts, second, lane, planes, q, scores);
  AddKeyGroups<kTiles, 3>(counts, second, lane, planes, q, scores);
  AddKeyGroups<kTiles, 2>(counts, second, lane, planes, q, scores);
  AddKeyGroups<kTiles, 1>(counts, second, lane, planes, q, scores);
}

template <int kTiles, int kWidth>
__device__ __forceinline__ void AddValueGroups(uint32_t counts, int second, int lane,
                                               const std::byte*& group,
                                               const StepWeights<kTiles>& weights, float4*& sums) {
#pragma unroll 1
  for (uint32_t count = counts >> (8 * (kWidth - 1)) & 255u; count > 0; --count) {
    float sum[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float4 before = sums[32 * n + lane];
      sum[n][0] = before.x;
      sum[n][1] = before.y;
      sum[n][2] = before.z;
      sum[n][3] = before.w;
    }
    uint32_t words[2][kStepBlocks][4];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int block = 0; block < kStepBlocks; ++block)
        LoadValueWords<kWidth>(group + block * second + 128 * kWidth * tile, lane,
                               words[tile][block]);
    }
    int32_t products[2][kTiles][4];
#pragma unroll
    for (int k = 0; k < kStepChunks / 2; ++k) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        uint32_t a[4];
        Operand<kWidth>(words[tile][k / 2], 2 * k % 4, a[0], a[1]);
        Operand<kWidth>(words[tile][k / 2], 2 * k % 4 + 1, a[2], a[3]);
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
          AddWeighted(products[tile][n], k == 0, a[0], a[1], a[2], a[3],
                      weights.operand[n] + 2 * k);
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[n][i] = fmaf(ProductOf(products[i / 2][n], i % 2), weights.factor[n], sum[n][i]);
      sums[32 * n + lane] = {sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
    }
    group += GroupBytes(kWidth);
    sums += 32 * kTiles;
  }
}

// Adds factor times weights . codes to sums: component 2 tile + s of group G is place 32 G + 16
// tile + 8 s + g. A step's sum fits 32 bits: 128 tokens, weights of at most 61,440, codes of at
// most 240.
template <int kTiles>
__device__ __forceinline__ void AddValueProducts(uint32_t counts, int second, int lane,
                                                 const std::byte* planes,
                                                 const StepWeights<kTiles>& weights, float4* sums) {
  AddValueGroups<kTiles, 4>(counts, second, lane, planes, weights, sums);
  AddValueGroups<kTiles, 3>(counts, second, lane, planes, weights, sums);
  AddValueGroups<kTiles, 2>(counts, second, lane, planes, weights, sums);
  AddValueGroups<kTiles, 1>(counts, second, lane, planes, weights, sums);
}

// Sum of the step's weights of query row t of tile `n`, in units of factor.
template <int kTiles>
__device__ __forceinline__ float WeightSum(const StepWeights<kTiles>& weights, int n) {
  constexpr uint32_t kOnes = 0x01010101u;
  int32_t products[4];
#pragma unroll
  for (int k = 0; k < kStepChunks / 2; ++k)
    AddWeighted(products, k == 0, kOnes, kOnes, kOnes, kOnes, weights.operand[n] + 2 * k);
  return ProductOf(products, 0);
}

// (2^w - 1) 2^(4 - w): twice what a left-aligned code is counted from.
__device__ __forceinline__ uint32_t AlignedLevelMax(uint32_t width) {
  return width == 0 ? 0 : 16u - (16u >> width);
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_PRODUCTS_CUH_
