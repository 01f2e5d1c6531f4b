// Attention of one warp over consecutive chunks of exact tokens of one KV head, in fp32.
//
// For the scores lanes i and i + 16 share token i of the chunk, half the channels each; for the
// sums every lane has head_dim / 32 channels of its own.
#ifndef KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_
#define KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/unit_search.cuh"

namespace kvdepot::raw {

inline constexpr unsigned kLanesAll = 0xFFFFFFFFu;
// A logit may exceed its reference by so much before that is raised.
inline constexpr float kHeadroomLog2 = 8.0f;

template <int kHeadDim, int kRows>
class RangeAttention {
 public:
  static constexpr int kChannels = kHeadDim / 32;  // of a lane

  __device__ RangeAttention(const RowLimits& limits, float soft_cap, const float* q, float* weights,
                            int lane)
      : limits_(limits), soft_cap_(soft_cap), q_(q), weights_(weights), lane_(lane) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      reference_[row] = kNoReference;
      sum_[row] = 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) output_[row][c] = 0;
    }
  }

  // `count` tokens; the first has position `position`.
  template <DType kDType>
  __device__ void AddChunk(const std::byte* k, const std::byte* v, int count, uint32_t position) {
    const int token = lane_ % 16;
    float y[kRows];
    Scores<kDType>(k + RowBytes(kDType) * min(token, count - 1), y);
    const uint32_t at = position + token;
    const bool all_see = position >= limits_.begin_all && position + count <= limits_.end_all;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (soft_cap_ > 0) y[row] = Capped(y[row], soft_cap_);
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
    AddValues<kDType>(v, count);
    __syncwarp();
  }

  // Adds all that was seen to `state`. Channel c of the values is place place_of[c], or c.
  __device__ void End(const SharedState<kHeadDim>& state, const uint8_t* place_of) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float sum = sum_[row];
      for (int mask = 1; mask < 32; mask *= 2) sum += __shfl_xor_sync(kLanesAll, sum, mask);
      const float before = state.reference(row);
      const float reference = fmaxf(before, reference_[row]);
      const float old_factor = ptx::Exp2(before - reference);
      const float new_factor = ptx::Exp2(reference_[row] - reference);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int channel = ChannelOf(c);
        float& output = state.output(row, place_of != nullptr ? place_of[channel] : channel);
        output = output * old_factor + output_[row][c] * new_factor;
      }
      __syncwarp();
      if (lane_ == 0) {
        state.sum(row) = state.sum(row) * old_factor + sum * new_factor;
        state.reference(row) = reference;
      }
      __syncwarp();
    }
  }

 private:
  static __device__ constexpr int RowBytes(DType dtype) {
    return kHeadDim * (dtype == DType::kFp32 ? 4 : 2);
  }
  // Two neighbours a lane, so that a warp's load is contiguous in 128-byte lines.
  __device__ int ChannelOf(int c) const { return 64 * (c / 2) + 2 * lane_ + c % 2; }

  // q.k of the lane's token, in both of its lanes.
  template <DType kDType>
  __device__ void Scores(const std::byte* k_row, float (&y)[kRows]) const {
    const int begin = lane_ / 16 * (kHeadDim / 2);
#pragma unroll
    for (int row = 0; row < kRows; ++row) y[row] = 0;
#pragma unroll 4
    for (int c = 0; c < kHeadDim / 2; c += 4) {
      const float4 key = LoadFour(k_row, kDType, begin + c);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const float4 query =
            *reinterpret_cast<const float4*>(q_ + row * kRowStride<kHeadDim> + begin + c);
        y[row] = fmaf(key.x, query.x, y[row]);
        y[row] = fmaf(key.y, query.y, y[row]);
        y[row] = fmaf(key.z, query.z, y[row]);
        y[row] = fmaf(key.w, query.w, y[row]);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) y[row] += __shfl_xor_sync(kLanesAll, y[row], 16);
  }

  __device__ void Raise(const float (&y)[kRows]) {
    bool over = false;
#pragma unroll
    for (int row = 0; row < kRows; ++row) over |= y[row] > reference_[row] + kHeadroomLog2;
    if (!__any_sync(kLanesAll, over)) return;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float largest = y[row];
#pragma unroll
      for (int mask = 1; mask < 16; mask *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(kLanesAll, largest, mask));
      const float raised = fmaxf(reference_[row], largest);
      const float factor = ptx::Exp2(reference_[row] - raised);
      reference_[row] = raised;
      sum_[row] *= factor;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) output_[row][c] *= factor;
    }
  }

  template <DType kDType>
  __device__ void AddValues(const std::byte* v, int count) {
#pragma unroll 4
    for (int token = 0; token < count; ++token) {
      float value[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; c += 2)
        LoadTwo<kDType>(v, token * kHeadDim + ChannelOf(c), value[c], value[c + 1]);
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

  template <DType kDType>
  static __device__ void LoadTwo(const std::byte* values, int index, float& first, float& second) {
    if constexpr (kDType == DType::kFp32) {
      const float2 both = *reinterpret_cast<const float2*>(values + 4 * index);
      first = both.x;
      second = both.y;
    } else {
      const uint32_t bits = *reinterpret_cast<const uint32_t*>(values + 2 * index);
      if constexpr (kDType == DType::kBf16) {
        first = __uint_as_float(bits << 16);
        second = __uint_as_float(bits & 0xFFFF0000u);
      } else {
        const float2 both = __half22float2(*reinterpret_cast<const __half2*>(&bits));
        first = both.x;
        second = both.y;
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

// Units [unit_begin, unit_end) of the cell's exact list, added to `state`.
template <int kHeadDim, int kRows, DType kDType>
__device__ void AttendRangeOf(const AttendCell& cell, uint32_t kv_head, uint32_t unit_begin,
                              uint32_t unit_end, const RowLimits& limits, float soft_cap,
                              const WarpMemory<kHeadDim>& memory,
                              const SharedState<kHeadDim>& state, int lane) {
  const size_t row_bytes = kHeadDim * DTypeBytes(kDType);
  RangeAttention<kHeadDim, kRows> attention(limits, soft_cap, memory.q, memory.weights, lane);
  uint32_t index = RunAt(cell.exact, cell.exact_runs, unit_begin, lane);
  for (uint32_t unit = unit_begin; unit < unit_end; ++index) {
    const ExactRun run = cell.exact[index];
    const std::byte* const k = run.rows + run.head_stride_bytes * kv_head + run.first * row_bytes;
    const std::byte* const v = k + run.capacity * row_bytes;
    int token = static_cast<int>(unit - run.unit_begin) * kExactChunkTokens;
    for (; token < run.count && unit < unit_end; token += kExactChunkTokens, ++unit) {
      attention.template AddChunk<kDType>(k + token * row_bytes, v + token * row_bytes,
                                          min(kExactChunkTokens, run.count - token),
                                          run.position + token);
    }
  }
  const uint8_t* place_of = nullptr;
  if (cell.heads != nullptr) {
    const uint8_t* const order = cell.heads[kv_head].v_order;
    for (int place = lane; place < kHeadDim; place += 32)
      memory.place_of[order[place]] = static_cast<uint8_t>(place);
    place_of = memory.place_of;
  }
  __syncwarp();
  attention.End(state, place_of);
}

template <int kHeadDim, int kRows>
__device__ void AttendRange(const AttendCell& cell, uint32_t kv_head, DType dtype,
                            uint32_t unit_begin, uint32_t unit_end, const RowLimits& limits,
                            float soft_cap, const WarpMemory<kHeadDim>& memory,
                            const SharedState<kHeadDim>& state, int lane) {
  switch (dtype) {
    case DType::kBf16:
      return AttendRangeOf<kHeadDim, kRows, DType::kBf16>(cell, kv_head, unit_begin, unit_end,
                                                          limits, soft_cap, memory, state, lane);
    case DType::kFp16:
      return AttendRangeOf<kHeadDim, kRows, DType::kFp16>(cell, kv_head, unit_begin, unit_end,
                                                          limits, soft_cap, memory, state, lane);
    case DType::kFp32:
      return AttendRangeOf<kHeadDim, kRows, DType::kFp32>(cell, kv_head, unit_begin, unit_end,
                                                          limits, soft_cap, memory, state, lane);
  }
}

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_
