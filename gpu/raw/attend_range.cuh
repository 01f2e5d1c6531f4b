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

// A logit may exceed its reference by so much before that is raised.
inline constexpr float kHeadroomLog2 = 8.0f;
// A block of tokens has so many chunks: where to look for a unit's run first.
inline constexpr uint32_t kRunChunks = kBlockTokens / kExactChunkTokens;

template <int kHeadDim, int kRows>
class RangeAttention {
 public:
  static constexpr int kChannels = kHeadDim / 32;  // of a lane

  // `is_bf16`: of two-byte values.
  __device__ RangeAttention(const RowLimits& limits, bool is_bf16, float soft_cap, const float* q,
                            float* weights, int lane)
      : limits_(limits),
        is_bf16_(is_bf16),
        soft_cap_(soft_cap),
        q_(q),
        weights_(weights),
        lane_(lane) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      reference_[row] = kNoReference;
      sum_[row] = 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) output_[row][c] = 0;
    }
  }

  // `count` tokens; the first has position `position`. All loads are under way before the first
  // value is used.
  template <int kBytes>
  __device__ __forceinline__ void AddChunk(const std::byte* k, const std::byte* v, int count,
                                           uint32_t position) {
    const int token = lane_ % 16;
    KeyHalf<kBytes> keys;
    ChunkValues<kBytes> values;
    keys.Load(k + kHeadDim * kBytes * min(token, count - 1) + kHeadDim * kBytes / 2 * (lane_ / 16));
    values.Load(v, count, lane_);
    float y[kRows];
    Scores<kBytes>(keys, y);
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
    AddValues<kBytes>(values);
    __syncwarp();
  }

  // Adds all that was seen to `state`. Channel c of the values is place place_of[c], or c.
  template <int kBytes>
  __device__ void End(const SharedState<kHeadDim>& state, const uint8_t* place_of) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float sum = sum_[row];
      for (int mask = 1; mask < 32; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
      const float before = state.reference(row);
      const float reference = fmaxf(before, reference_[row]);
      const float old_factor = ptx::Exp2(before - reference);
      const float new_factor = ptx::Exp2(reference_[row] - reference);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const int channel = ChannelOf<kBytes>(c);
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
  // Channel of the lane's value c: a warp's words lie side by side, with one value or two each.
  template <int kBytes>
  __device__ int ChannelOf(int c) const {
    return kBytes == 4 ? 32 * c + lane_ : 64 * (c / 2) + 2 * lane_ + c % 2;
  }

  // Half a row of K.
  template <int kBytes>
  struct KeyHalf {
    static constexpr int kWords = kHeadDim * kBytes / 32;
    uint4 words[kWords];
    __device__ __forceinline__ void Load(const std::byte* from) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  };
  // The lane's channels of V, all tokens; zeros past the last. A warp's words lie side by side.
  template <int kBytes>
  struct ChunkValues {
    static constexpr int kWords = kChannels * kBytes / 4;
    uint32_t words[kExactChunkTokens][kWords];
    __device__ __forceinline__ void Load(const std::byte* v, int count, int lane) {
#pragma unroll
      for (int token = 0; token < kExactChunkTokens; ++token) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          words[token][i] = 0;
          if (token < count)
            words[token][i] =
                reinterpret_cast<const uint32_t*>(v + kHeadDim * kBytes * token)[32 * i + lane];
        }
      }
    }
  };

  // q.k of the lane's token, in both of its lanes.
  template <int kBytes>
  __device__ __forceinline__ void Scores(const KeyHalf<kBytes>& keys, float (&y)[kRows]) const {
    const float* const q = q_ + lane_ / 16 * (kHeadDim / 2);
    constexpr int kValues = 16 / kBytes;  // of a word
#pragma unroll
    for (int row = 0; row < kRows; ++row) y[row] = 0;
#pragma unroll
    for (int i = 0; i < KeyHalf<kBytes>::kWords; ++i) {
      float key[kValues];
      const uint32_t bits[4] = {keys.words[i].x, keys.words[i].y, keys.words[i].z, keys.words[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) Unpack<kBytes>(bits[j], key + j * kValues / 4);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int j = 0; j < kValues; j += 4) {
          const float4 query =
              *reinterpret_cast<const float4*>(q + row * kRowStride<kHeadDim> + kValues * i + j);
          y[row] = fmaf(key[j], query.x, y[row]);
          y[row] = fmaf(key[j + 1], query.y, y[row]);
          y[row] = fmaf(key[j + 2], query.z, y[row]);
          y[row] = fmaf(key[j + 3], query.w, y[row]);
        }
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

  template <int kBytes>
  __device__ __forceinline__ void AddValues(const ChunkValues<kBytes>& values) {
    constexpr int kWords = ChunkValues<kBytes>::kWords;
#pragma unroll
    for (int token = 0; token < kExactChunkTokens; ++token) {
      float value[kChannels];
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        Unpack<kBytes>(values.words[token][i], value + i * kChannels / kWords);
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

  // One value of fp32 or two of the others.
  template <int kBytes>
  __device__ __forceinline__ void Unpack(uint32_t bits, float* values) const {
    if constexpr (kBytes == 4) {
      values[0] = __uint_as_float(bits);
    } else {
      const float2 both = UnpackTwo(bits, is_bf16_);
      values[0] = both.x;
      values[1] = both.y;
    }
  }

  const RowLimits& limits_;
  const bool is_bf16_;
  const float soft_cap_;
  const float* const q_;
  float* const weights_;
  const int lane_;
  float reference_[kRows];
  float sum_[kRows];  // of the lane's tokens
  float output_[kRows][kChannels];
};

// Units [unit_begin, unit_end) of the cell's exact list, added to `state`. Not inlined: a part of
// the kernel that most warps never come to.
template <int kHeadDim, int kRows, int kBytes>
__device__ __noinline__ void AttendRangeOf(const AttendCell& cell, uint32_t kv_head, bool is_bf16,
                                           uint32_t unit_begin, uint32_t unit_end, RowLimits limits,
                                           float soft_cap, WarpMemory<kHeadDim> memory,
                                           SharedState<kHeadDim> state, int lane) {
  constexpr size_t kRowBytes = kHeadDim * kBytes;
  RangeAttention<kHeadDim, kRows> attention(limits, is_bf16, soft_cap, memory.q, memory.weights,
                                            lane);
  uint32_t index = RunAt(cell.exact, cell.exact_runs, unit_begin, unit_begin / kRunChunks, lane);
  for (uint32_t unit = unit_begin; unit < unit_end; ++index) {
    const ExactRun run = cell.exact[index];
    const std::byte* const k = run.rows + run.head_stride_bytes * kv_head + run.first * kRowBytes;
    const std::byte* const v = k + run.capacity * kRowBytes;
    int token = static_cast<int>(unit - run.unit_begin) * kExactChunkTokens;
    for (; token < run.count && unit < unit_end; token += kExactChunkTokens, ++unit) {
      attention.template AddChunk<kBytes>(k + token * kRowBytes, v + token * kRowBytes,
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
  attention.template End<kBytes>(state, place_of);
}

template <int kHeadDim, int kRows>
__device__ __forceinline__ void AttendRange(const AttendCell& cell, uint32_t kv_head, DType dtype,
                                            uint32_t unit_begin, uint32_t unit_end,
                                            const RowLimits& limits, float soft_cap,
                                            const WarpMemory<kHeadDim>& memory,
                                            const SharedState<kHeadDim>& state, int lane) {
  if (dtype == DType::kFp32) {
    AttendRangeOf<kHeadDim, kRows, 4>(cell, kv_head, false, unit_begin, unit_end, limits, soft_cap,
                                      memory, state, lane);
  } else {
    AttendRangeOf<kHeadDim, kRows, 2>(cell, kv_head, dtype == DType::kBf16, unit_begin, unit_end,
                                      limits, soft_cap, memory, state, lane);
  }
}

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_
