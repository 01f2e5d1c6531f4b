// Scores and weighted sums of one 64-token block of `planes` on the tensor cores, one warp a block.
//
// The bytes are the u8 operand A of mma.m16n8k32 as they lie (gpu/FORMAT.md): masking is all that
// unpacking takes. Queries and softmax weights are 16-bit integers, split into a high and a low
// byte that take two columns of operand B: one n-tile serves four query rows. Row r + 8 of A holds
// high nibbles, so everything there carries a factor of 16.
//
// Lane 4 g + t. Accumulators: c0, c1 are the high and low column of query row t, row g; c2, c3 the
// same of row g + 8.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_CUDA_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_CUDA_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/format.h"
#include "gpu/planes/pattern.h"

namespace kvdepot::planes {

// Softmax weights of a block's tokens as operand B, chunk x at x, and what one unit of them is.
template <int kTiles>
struct BlockWeights {
  uint32_t operand[kTiles][4];
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
__device__ __forceinline__ void AddKeyGroups(uint32_t counts, int lane, const std::byte*& group,
                                             const uint2*& q, int32_t (&scores)[kTiles][4][4]) {
#pragma unroll 1
  for (uint32_t count = counts >> (8 * (kWidth - 1)) & 255u; count > 0; --count) {
    uint32_t words[2][4];
    LoadKeyWords<kWidth>(group, lane, words);
    uint2 b[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) b[n] = q[32 * n + lane];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      uint32_t a[4];
      Operand<kWidth>(words[0], x, a[0], a[1]);
      Operand<kWidth>(words[1], x, a[2], a[3]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n)
        ptx::MmaSigned(scores[n][x], a[0], a[1], a[2], a[3], b[n].x, b[n].y);
    }
    group += GroupBytes(kWidth);
    q += 32 * kTiles;
  }
}

// Adds q' . codes to scores[n][x]: tokens 16 x + g and 16 x + 8 + g.
template <int kTiles>
__device__ __forceinline__ void AddKeyProducts(uint32_t counts, int lane, const std::byte* planes,
                                               const uint2* q, int32_t (&scores)[kTiles][4][4]) {
  AddKeyGroups<kTiles, 4>(counts, lane, planes, q, scores);
  AddKeyGroups<kTiles, 3>(counts, lane, planes, q, scores);
  AddKeyGroups<kTiles, 2>(counts, lane, planes, q, scores);
  AddKeyGroups<kTiles, 1>(counts, lane, planes, q, scores);
}

template <int kTiles, int kWidth>
__device__ __forceinline__ void AddValueGroups(uint32_t counts, int lane, const std::byte*& group,
                                               const BlockWeights<kTiles>& weights, float4*& sums) {
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
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      uint32_t words[4];
      LoadValueWords<kWidth>(group + 128 * kWidth * tile, lane, words);
      int32_t products[kTiles][4];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t a[4];
        Operand<kWidth>(words, 2 * k, a[0], a[1]);
        Operand<kWidth>(words, 2 * k + 1, a[2], a[3]);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint32_t b0 = weights.operand[n][2 * k];
          const uint32_t b1 = weights.operand[n][2 * k + 1];
          if (k == 0) {
            ptx::MmaUnsignedFirst(products[n], a[0], a[1], a[2], a[3], b0, b1);
          } else {
            ptx::MmaUnsigned(products[n], a[0], a[1], a[2], a[3], b0, b1);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const int32_t product = 256 * products[n][2 * s] + products[n][2 * s + 1];
          sum[n][2 * tile + s] =
              fmaf(static_cast<float>(product), weights.factor[n], sum[n][2 * tile + s]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
      sums[32 * n + lane] = {sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
    group += GroupBytes(kWidth);
    sums += 32 * kTiles;
  }
}

// Adds factor times weights . codes to sums: component 2 tile + s of group G is place 32 G + 16
// tile
// + 8 s + g. A block's sum fits 32 bits: 64 tokens, weights below 61,441, codes of at most 240.
template <int kTiles>
__device__ __forceinline__ void AddValueProducts(uint32_t counts, int lane, const std::byte* planes,
                                                 const BlockWeights<kTiles>& weights,
                                                 float4* sums) {
  AddValueGroups<kTiles, 4>(counts, lane, planes, weights, sums);
  AddValueGroups<kTiles, 3>(counts, lane, planes, weights, sums);
  AddValueGroups<kTiles, 2>(counts, lane, planes, weights, sums);
  AddValueGroups<kTiles, 1>(counts, lane, planes, weights, sums);
}

// (2^w - 1) 2^(4 - w): twice what a left-aligned code is counted from.
__device__ __forceinline__ uint32_t AlignedLevelMax(uint32_t width) {
  return width == 0 ? 0 : 16u - (16u >> width);
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_CUDA_CUH_
