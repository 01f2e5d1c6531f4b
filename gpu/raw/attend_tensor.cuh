// Attention of one warp over chunks of 16 exact tokens of one KV head, fp16 or bf16, on the tensor
// cores (mma.m16n8k16).
//
// Lane 4 g + t. Scores: A holds query row g as it was given, B the keys of tokens g and g + 8, so
// that a lane gets row g's logits of tokens 2 t, 2 t + 1, 2 t + 8 and 2 t + 9: just what operand A
// of the weighted sums wants of it. Weights are split into a high and a low half, row g and row
// g + 8 of A, and keep twice the dtype's precision. Channels go to k and n in an order of their
// own, by which a lane reads 16 bytes at once.
#ifndef KVDEPOT_GPU_RAW_ATTEND_TENSOR_CUH_
#define KVDEPOT_GPU_RAW_ATTEND_TENSOR_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot::raw {

// Two values as a register holds them, the first in the low half.
template <bool kIsBf16>
__device__ __forceinline__ uint32_t PackTwo(float first, float second) {
  if constexpr (kIsBf16) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&both);
  } else {
    const __half2 both = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t*>(&both);
  }
}

template <int kHeadDim, int kRows, bool kIsBf16>
class TensorAttention {
 public:
  static constexpr uint32_t kRowBytes = 2 * kHeadDim;

  // `q`: query row lane / 4 of the tile, kHeadDim values; null for padding and past kRows.
  __device__ __forceinline__ TensorAttention(const std::byte* q, float scale, float soft_cap,
                                             const RowLimits& limits, int lane)
      : scale_(scale),
        soft_cap_(soft_cap),
        lane_(lane),
        begin_all_(limits.begin_all),
        end_all_(limits.end_all),
        begin_(limits.Begin(lane / 4)),
        end_(limits.End(lane / 4)) {
#pragma unroll
    for (int j = 0; j < kHeadDim / 32; ++j) {
      q_[j] = {0, 0, 0, 0};
      if (q != nullptr) q_[j] = *reinterpret_cast<const uint4*>(q + 64 * j + 16 * (lane % 4));
    }
#pragma unroll
    for (int tile = 0; tile < kHeadDim / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output_[tile][i] = 0;
    }
  }

  // Logits to base 2 of the lane's tokens of a chunk of `count`, the first of position `position`.
  // `k`: its rows in shared memory.
  __device__ __forceinline__ void Logits(const std::byte* k, int count, uint32_t position,
                                         float (&y)[4]) const {
    Scores(k, count, y);
    const bool all_see = position >= begin_all_ && position + count <= end_all_;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = position + TokenOf(i);
      if (TokenOf(i) >= count || (!all_see && (at < begin_ || at >= end_))) y[i] = -INFINITY;
    }
  }

  // Adds the chunk's values, whose rows lie at `v` in shared memory.
  __device__ __forceinline__ void AddValues(const std::byte* v, int count, const float (&y)[4]) {
    uint4 values[4][kHeadDim / 64];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::byte* const row = v + kRowBytes * min(TokenOf(i), count - 1) + 16 * (lane_ / 4);
#pragma unroll
      for (int h = 0; h < kHeadDim / 64; ++h)
        values[i][h] = *reinterpret_cast<const uint4*>(row + 128 * h);
    }
    Raise(y);
    uint32_t high[2];
    uint32_t low[2];
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float2 p = {ptx::Exp2(y[i] - reference_), ptx::Exp2(y[i + 1] - reference_)};
      sum_ += p.x + p.y;
      high[i / 2] = PackTwo<kIsBf16>(p.x, p.y);
      const float2 packed = UnpackTwo(high[i / 2], kIsBf16);
      low[i / 2] = PackTwo<kIsBf16>(p.x - packed.x, p.y - packed.y);
    }
#pragma unroll
    for (int h = 0; h < kHeadDim / 64; ++h) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint32_t pick = e == 0 ? 0x5410 : 0x7632;
          const uint32_t b0 = __byte_perm(Word(values[0][h], i), Word(values[1][h], i), pick);
          const uint32_t b1 = __byte_perm(Word(values[2][h], i), Word(values[3][h], i), pick);
          ptx::MmaFloat<kIsBf16>(output_[8 * h + 2 * i + e], high[0], low[0], high[1], low[1], b0,
                                 b1);
        }
      }
    }
  }

  // Writes the state of all that was seen, outputs by channel.
  __device__ __forceinline__ void Store(const RowState<kHeadDim>& state) const {
    const int row = lane_ / 4;
    const float sum = SumOverT(sum_);
    if (row < kRows) {
#pragma unroll
      for (int tile = 0; tile < kHeadDim / 8; tile += 4) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const auto value = [&](int i) {
            return output_[tile + i][column] + output_[tile + i][2 + column];
          };
          const int channel = tile / 8 * 64 + 8 * (2 * (lane_ % 4) + column) + tile % 8;
          *reinterpret_cast<float4*>(&state.output(row, channel)) = {value(0), value(1), value(2),
                                                                     value(3)};
        }
      }
      if (lane_ % 4 == 0) {
        state.reference(row) = reference_;
        state.sum(row) = sum;
      }
    }
    __syncwarp();
  }

 private:
  // Of the chunk, the lane's token i.
  __device__ __forceinline__ int TokenOf(int i) const {
    return 8 * (i / 2) + 2 * (lane_ % 4) + i % 2;
  }
  static __device__ __forceinline__ uint32_t Word(const uint4& words, int i) {
    return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
  }
  static __device__ __forceinline__ float SumOverT(float value) {
    value += __shfl_xor_sync(kAllLanes, value, 1);
    return value + __shfl_xor_sync(kAllLanes, value, 2);
  }

  __device__ __forceinline__ void Scores(const std::byte* k, int count, float (&y)[4]) const {
    uint4 keys[2][kHeadDim / 32];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::byte* const row =
          k + kRowBytes * min(lane_ / 4 + 8 * half, count - 1) + 16 * (lane_ % 4);
#pragma unroll
      for (int j = 0; j < kHeadDim / 32; ++j)
        keys[half][j] = *reinterpret_cast<const uint4*>(row + 64 * j);
    }
    float scores[2][4] = {};
#pragma unroll
    for (int j = 0; j < kHeadDim / 32; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4& key = keys[half][j];
        ptx::MmaFloat<kIsBf16>(scores[half], q_[j].x, 0, q_[j].y, 0, key.x, key.y);
        ptx::MmaFloat<kIsBf16>(scores[half], q_[j].z, 0, q_[j].w, 0, key.z, key.w);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      y[i] = scores[i / 2][i % 2] * scale_;
      if (soft_cap_ > 0) y[i] = Capped(y[i], soft_cap_);
    }
  }

  __device__ __forceinline__ void Raise(const float (&y)[4]) {
    float largest = fmaxf(fmaxf(y[0], y[1]), fmaxf(y[2], y[3]));
    if (!__any_sync(kAllLanes, largest > reference_ + kHeadroomLog2)) return;
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
    const float raised = fmaxf(reference_, largest);
    const float factor = ptx::Exp2(reference_ - raised);
    reference_ = raised;
    sum_ *= factor;
#pragma unroll
    for (int tile = 0; tile < kHeadDim / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) output_[tile][i] *= factor;
    }
  }

  const float scale_;
  const float soft_cap_;
  const int lane_;
  // What all rows of the tile see, and what the lane's sees.
  const uint32_t begin_all_;
  const uint32_t end_all_;
  const uint32_t begin_;
  const uint32_t end_;
  uint4 q_[kHeadDim / 32];
  float reference_ = kNoReference;
  float sum_ = 0;  // of the lane's tokens
  // Columns 2 t and 2 t + 1 of row g and of row g + 8; tile 8 h + i, column c: channel 64 h + 8 c +
  // i.
  float output_[kHeadDim / 8][4];
};

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_TENSOR_CUH_
