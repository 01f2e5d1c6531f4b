// Attention of one warp over chunks of exact tokens of one KV head, fp32, without tensor cores.
//
// For the scores lanes i and i + 16 share token i of the chunk, half the channels each; for the
// sums every lane has head_dim / 32 channels of its own.
#ifndef KVDEPOT_GPU_RAW_ATTEND_SCALAR_CUH_
#define KVDEPOT_GPU_RAW_ATTEND_SCALAR_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/raw/attend_chunks.cuh"

namespace kvdepot::raw {

template <int kHeadDim, int kRows>
class ScalarAttention {
 public:
  static constexpr uint32_t kRowBytes = 4 * kHeadDim;
  static constexpr int kChannels = kHeadDim / 32;  // of a lane

  // `q`: [rows][kRowStride], times the scale. `weights`: [kExactChunkTokens][rows], scratch.
  __device__ ScalarAttention(const RowLimits& limits, float soft_cap, const float* q,
                             float* weights, int lane)
      : limits_(limits), soft_cap_(soft_cap), q_(q), weights_(weights), lane_(lane) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      reference_[row] = kNoReference;
      sum_[row] = 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) output_[row][c] = 0;
    }
  }

  // All loads are under way before the first value is used.
  __device__ __forceinline__ void Add(const ChunkRows& rows) {
    const int count = rows.count;
    const uint32_t position = rows.position;
    const int token = lane_ % 16;
    KeyHalf keys;
    ChunkValues values;
    keys.Load(rows.k + kRowBytes * min(token, count - 1) + kRowBytes / 2 * (lane_ / 16));
    values.Load(rows.v, count, lane_);
    float y[kRows];
    Scores(keys, y);
    const uint32_t at = position + token;
    const bool all_see = position >= limits_.begin_all && position + count <= limits_.end_all;
    if (soft_cap_ > 0) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) y[row] = Capped(y[row], soft_cap_);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (token >= count || (!all_see && (at < limits_.Begin(row) || at >= limits_.End(row))))
        y[row] = -INFINITY;
    }
    Raise(y);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float p = ptx::Exp2(y[row] - reference_[row]);
      if (lane_ < 16) {
        sum_[row] += p;
        weights_[token * kRows + row] = p;
      }
    }
    __syncwarp();
    AddValues(values);
    __syncwarp();
  }

  // Writes the state of all that was seen, outputs by channel.
  __device__ void Store(const RowState<kHeadDim>& state) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float sum = SumOfWarp(sum_[row]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) state.output(row, 32 * c + lane_) = output_[row][c];
      if (lane_ == 0) {
        state.reference(row) = reference_[row];
        state.sum(row) = sum;
      }
    }
    __syncwarp();
  }

 private:
  // Half a row of K.
  struct KeyHalf {
    static constexpr int kFours = kHeadDim / 8;
    float4 values[kFours];
    __device__ __forceinline__ void Load(const std::byte* from) {
#pragma unroll
      for (int i = 0; i < kFours; ++i) values[i] = reinterpret_cast<const float4*>(from)[i];
    }
  };
  // The lane's channels of V, all tokens; zeros past the last. A warp's lie side by side.
  struct ChunkValues {
    float values[kExactChunkTokens][kChannels];
    __device__ __forceinline__ void Load(const std::byte* v, int count, int lane) {
#pragma unroll
      for (int token = 0; token < kExactChunkTokens; ++token) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          values[token][c] = 0;
          if (token < count)
            values[token][c] = reinterpret_cast<const float*>(v + kRowBytes * token)[32 * c + lane];
        }
      }
    }
  };

  // q.k of the lane's token, in both of its lanes.
  __device__ __forceinline__ void Scores(const KeyHalf& keys, float (&y)[kRows]) const {
    const float* const q = q_ + lane_ / 16 * (kHeadDim / 2);
#pragma unroll
    for (int row = 0; row < kRows; ++row) y[row] = 0;
#pragma unroll
    for (int i = 0; i < KeyHalf::kFours; ++i) {
      const float4& key = keys.values[i];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const float4 query =
            *reinterpret_cast<const float4*>(q + row * kRowStride<kHeadDim> + 4 * i);
        y[row] = fmaf(key.x, query.x, y[row]);
        y[row] = fmaf(key.y, query.y, y[row]);
        y[row] = fmaf(key.z, query.z, y[row]);
        y[row] = fmaf(key.w, query.w, y[row]);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) y[row] += __shfl_xor_sync(kAllLanes, y[row], 16);
  }

  __device__ void Raise(const float (&y)[kRows]) {
    bool over = false;
#pragma unroll
    for (int row = 0; row < kRows; ++row) over |= y[row] > reference_[row] + kHeadroomLog2;
    if (!__any_sync(kAllLanes, over)) return;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float largest = y[row];
#pragma unroll
      for (int mask = 1; mask < 16; mask *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
      const float raised = fmaxf(reference_[row], largest);
      const float factor = ptx::Exp2(reference_[row] - raised);
      reference_[row] = raised;
      sum_[row] *= factor;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) output_[row][c] *= factor;
    }
  }

  __device__ __forceinline__ void AddValues(const ChunkValues& values) {
#pragma unroll
    for (int token = 0; token < kExactChunkTokens; ++token) {
      const float(&value)[kChannels] = values.values[token];
#pragma unroll
      for (int row = 0; row < kRows; row += 4) {
        const float4 p = *reinterpret_cast<const float4*>(weights_ + token * kRows + row);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          output_[row][c] = fmaf(p.x, value[c], output_[row][c]);
          output_[row + 1][c] = fmaf(p.y, value[c], output_[row + 1][c]);
          output_[row + 2][c] = fmaf(p.z, value[c], output_[row + 2][c]);
          output_[row + 3][c] = fmaf(p.w, value[c], output_[row + 3][c]);
        }
      }
    }
  }

  const RowLimits& limits_;
  const float soft_cap_;
  const float* const q_;
  float* const weights_;
  const int lane_;
  float reference_[kRows];
  float sum_[kRows];  // of the lane's tokens
  float output_[kRows][kChannels];
};

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_SCALAR_CUH_
