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

// q' . codes of all groups, or adds those of groups kGroup.. to scores[n][x]: tokens 16 x + g and
// 16 x + 8 + g.
template <int kHeadDim, int kTiles, int kPattern, int kGroup = 0>
__device__ __forceinline__ void KeyProductsOf(const std::byte* group, int lane,
                                              const uint32_t (&q)[kTiles][kHeadDim / 16],
                                              int32_t (&scores)[kTiles][4][4]) {
  constexpr Pattern pattern = KeyPattern(kHeadDim, kPattern);
  if constexpr (kGroup < pattern.groups && pattern.width[kGroup % kGroupsMax] > 0) {
    constexpr int kWidth = pattern.width[kGroup];
    uint32_t words[2][4];
    LoadKeyWords<kWidth>(group, lane, words);
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      uint32_t a[4];
      Operand<kWidth>(words[0], x, a[0], a[1]);
      Operand<kWidth>(words[1], x, a[2], a[3]);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if constexpr (kGroup == 0) {
          ptx::MmaSignedFirst(scores[n][x], a[0], a[1], a[2], a[3], q[n][0], q[n][1]);
        } else {
          ptx::MmaSigned(scores[n][x], a[0], a[1], a[2], a[3], q[n][2 * kGroup],
                         q[n][2 * kGroup + 1]);
        }
      }
    }
    KeyProductsOf<kHeadDim, kTiles, kPattern, kGroup + 1>(group + GroupBytes(kWidth), lane, q,
                                                          scores);
  }
}

// Adds factor times weights . codes of groups kGroup.. to sums[n][i]: places 16 i + g and 16 i + 8
// + g. A block's sum fits 32 bits: 64 tokens, weights below 61,441, codes of at most 240.
template <int kHeadDim, int kTiles, int kPattern, int kGroup = 0>
__device__ __forceinline__ void ValueProductsOf(const std::byte* group, int lane,
                                                const BlockWeights<kTiles>& weights,
                                                float (&sums)[kTiles][kHeadDim / 16][2]) {
  constexpr Pattern pattern = ValuePattern(kHeadDim, kPattern);
  if constexpr (kGroup < pattern.groups && pattern.width[kGroup % kGroupsMax] > 0) {
    constexpr int kWidth = pattern.width[kGroup];
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
          float& sum = sums[n][2 * kGroup + tile][s];
          sum = fmaf(static_cast<float>(product), weights.factor[n], sum);
        }
      }
    }
    ValueProductsOf<kHeadDim, kTiles, kPattern, kGroup + 1>(group + GroupBytes(kWidth), lane,
                                                            weights, sums);
  }
}

// The pattern is one number a head: warps never diverge here.
#define KVDEPOT_CASE(function, p)                                         \
  case p:                                                                 \
    if constexpr (p < PatternCount(kHeadDim))                             \
      function<kHeadDim, kTiles, p>(planes, lane, operand, accumulators); \
    break;
#define KVDEPOT_CASES(function) \
  KVDEPOT_CASE(function, 0)     \
  KVDEPOT_CASE(function, 1)     \
  KVDEPOT_CASE(function, 2)     \
  KVDEPOT_CASE(function, 3)     \
  KVDEPOT_CASE(function, 4)     \
  KVDEPOT_CASE(function, 5)     \
  KVDEPOT_CASE(function, 6)     \
  KVDEPOT_CASE(function, 7)     \
  KVDEPOT_CASE(function, 8)     \
  KVDEPOT_CASE(function, 9)     \
  KVDEPOT_CASE(function, 10)    \
  KVDEPOT_CASE(function, 11)    \
  KVDEPOT_CASE(function, 12)    \
  KVDEPOT_CASE(function, 13)    \
  KVDEPOT_CASE(function, 14)

template <int kHeadDim, int kTiles>
__device__ __forceinline__ void KeyProducts(int pattern, const std::byte* planes, int lane,
                                            const uint32_t (&operand)[kTiles][kHeadDim / 16],
                                            int32_t (&accumulators)[kTiles][4][4]) {
  switch (pattern) { KVDEPOT_CASES(KeyProductsOf) }
}

template <int kHeadDim, int kTiles>
__device__ __forceinline__ void ValueProducts(int pattern, const std::byte* planes, int lane,
                                              const BlockWeights<kTiles>& operand,
                                              float (&accumulators)[kTiles][kHeadDim / 16][2]) {
  switch (pattern) { KVDEPOT_CASES(ValueProductsOf) }
}
#undef KVDEPOT_CASES
#undef KVDEPOT_CASE

// (2^w - 1) 2^(4 - w): twice what a left-aligned code is counted from.
__device__ __forceinline__ uint32_t AlignedLevelMax(uint32_t width) {
  return width == 0 ? 0 : 16u - (16u >> width);
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_CUDA_CUH_
