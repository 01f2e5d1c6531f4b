// Queries in the units of a segment, as operand B of the scores.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_QUERIES_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_QUERIES_CUH_

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_row.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/attend_products.cuh"

namespace kvdepot::planes {

// Queries are integers of at most this, so that the high byte stays signed after rounding.
inline constexpr float kQueryMax = 32512.0f;

// Queries of four rows a tile in the units of one segment's K table.
template <int kHeadDim, int kTiles>
struct SegmentQueries {
  int32_t half[kTiles];  // what codes of zero would score, see AlignedLevelMax
  // A unit of q' is multiplier times the power of two that unit_bits adds to a token scale's
  // exponent; logits are counted in multipliers up to the exponential function.
  float multiplier[kTiles];
  uint32_t unit_bits[kTiles];
  float centre[kTiles];  // q . centres / multiplier

  // `q`: by place.
  __device__ __forceinline__ void Make(const std::byte* k_table, uint32_t k_widths, const float* q,
                                       uint2* operand, int lane) {
    constexpr int kEntries = kHeadDim / 8;  // of a lane's g: scales, then centres
    const int g = lane / 4;
    const int t = lane % 4;
    const __half* scales = reinterpret_cast<const __half*>(k_table) + g * 2 * kEntries;
    const __half* centres = scales + kEntries;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float* row = q + (4 * n + t) * kRowStride<kHeadDim>;
      float value[kEntries];
      float largest = 0;
      float dot = 0;
#pragma unroll
      for (int m = 0; m < kEntries / 2; ++m) {
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(scales + 2 * m));
        const float2 centre = __half22float2(*reinterpret_cast<const __half2*>(centres + 2 * m));
        const float2 two = *reinterpret_cast<const float2*>(row + 16 * m + 2 * g);
        value[2 * m] = two.x * scale.x;
        value[2 * m + 1] = two.y * scale.y;
        largest = fmaxf(largest, fmaxf(fabsf(value[2 * m]), fabsf(value[2 * m + 1])));
        dot = fmaf(two.x, centre.x, fmaf(two.y, centre.y, dot));
      }
      // The largest becomes kQueryMax. Not below 2^-90, so that exponents stay in range.
      largest = fmaxf(MaxOverG(largest) * (1 / kQueryMax), 8.0779357e-28f);
      const float per_unit = __fdividef(1.0f, largest);
      const uint32_t exponent = __float_as_uint(largest) >> 23;
      unit_bits[n] = (exponent - 127u) << 23;
      multiplier[n] = __uint_as_float((__float_as_uint(largest) & 0x7FFFFFu) | 0x3F800000u);
      centre[n] = __fdividef(SumOverG(dot), multiplier[n]);
      int32_t twice[4] = {0, 0, 0, 0};
#pragma unroll
      for (int group = 0; group < kHeadDim / 32; ++group) {
        uint32_t b[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          // 1.5 * 2^23 + 128: the low 16 bits are q' + 128, whose bytes are the high part of q'
          // and, with its top bit flipped, the signed low part.
          const int m = 2 * group + h;
          const uint32_t first = __float_as_uint(fmaf(value[2 * m], per_unit, 12583040.0f));
          const int second = __float_as_uint(fmaf(value[2 * m + 1], per_unit, 12583040.0f));
          b[h] = ptx::Transpose8x8(__byte_perm(first, second, 0x4051) ^ 0x80800000u);
        }
        const uint32_t level = AlignedLevelMax(k_widths >> (4 * group) & 15u) * 0x01010101u;
        ptx::MmaSigned(twice, level, level, level, level, b[0], b[1]);
        operand[32 * (kTiles * group + n) + lane] = {b[0], b[1]};
      }
      half[n] = (256 * twice[0] + twice[1]) / 2;
    }
  }
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_QUERIES_CUH_
