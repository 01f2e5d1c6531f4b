// First kernel of an encoding: codes of all values, and each block's token table.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_QUANTIZE_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_QUANTIZE_CUH_

#include <cfloat>

#include "gpu/cuda_ptx.cuh"
#include "gpu/load_values.cuh"
#include "gpu/packkv/encode_launch.cuh"
#include "gpu/packkv/step.h"

namespace kvdepot::packkv {

inline constexpr int kQuantizeWarps = 16;
inline constexpr int kQuantizeThreads = 32 * kQuantizeWarps;

// Of a token's codes of V, by value: where their median is.
struct Histogram {
  static constexpr int kCodes = 256;
  static constexpr int kCodesOfLane = kCodes / 32;
  uint32_t count[kCodes];
};

// What a thread block knows of its block. Arrays of two are of K and V, others by token.
struct QuantizeShared {
  uint16_t scale[2][kBlockTokens];
  int16_t zero[2][kBlockTokens];
  uint8_t median[kBlockTokens];
  uint8_t order[kBlockTokens];  // by place
  uint32_t largest_code[2];
  uint32_t out_of_range;
  Histogram histogram[kQuantizeWarps];
};

// K or V of one token in a block of [head][K, V][token][channel]: octets of channels, head after
// head.
struct TokenRow {
  int tensor;
  int token;
  int head_dim;
  int octets;

  // Of the octet's first value.
  __device__ size_t IndexOf(int octet) const {
    // head_dim is a power of two.
    const int shift = 28 - __clz(head_dim);
    const int head = octet >> shift;
    const int channel = 8 * (octet & ((1 << shift) - 1));
    return static_cast<size_t>((2 * head + tensor) * kBlockTokens + token) *
               static_cast<size_t>(head_dim) +
           static_cast<size_t>(channel);
  }
};

template <DType kDType>
__device__ __forceinline__ void LoadRowOctet(const TokenRow& row, const std::byte* extent,
                                             int octet, float (&values)[8]) {
  LoadOctet<kDType>(extent + row.IndexOf(octet) * DTypeBytes(kDType), 0, values);
}

// Smallest and largest value of a row, in all lanes.
template <DType kDType>
__device__ float2 RangeOf(const TokenRow& row, const std::byte* extent) {
  float least = FLT_MAX;
  float most = -FLT_MAX;
#pragma unroll 4
  for (int octet = static_cast<int>(threadIdx.x % 32); octet < row.octets; octet += 32) {
    float values[8];
    LoadRowOctet<kDType>(row, extent, octet, values);
#pragma unroll
    for (const float value : values) {
      least = fminf(least, value);
      most = fmaxf(most, value);
    }
  }
  return make_float2(-MaxOfWarp(-least), MaxOfWarp(most));
}

// Writes a row's codes and gives each, an unsigned number of 8 bits, to visit(code).
template <DType kDType, class Visit>
__device__ __forceinline__ void WriteCodes(const TokenRow& row, const std::byte* extent, float step,
                                           int zero, uint8_t* codes, const Visit& visit) {
#pragma unroll 4
  for (int octet = static_cast<int>(threadIdx.x % 32); octet < row.octets; octet += 32) {
    float values[8];
    LoadRowOctet<kDType>(row, extent, octet, values);
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = static_cast<uint32_t>(StepsOf(values[i], step) - zero) & 0xFFu;
      words[i / 4] |= code << (8 * (i % 4));
      visit(code);
    }
    *reinterpret_cast<uint2*>(codes + row.IndexOf(octet)) = make_uint2(words[0], words[1]);
  }
}

// The lower median of `count` codes.
__device__ __forceinline__ uint8_t MedianOf(const Histogram& histogram, uint32_t count) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t* own = histogram.count + lane * Histogram::kCodesOfLane;
  uint32_t sum = 0;
  for (int i = 0; i < Histogram::kCodesOfLane; ++i) sum += own[i];
  uint32_t before = sum;  // own ones among them at first
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  before -= sum;
  const uint32_t middle = (count - 1) / 2;
  // The last lane whose codes begin at or before the middle has it.
  const uint32_t begun = __ballot_sync(kAllLanes, before <= middle);
  int code = 0;
  while (code + 1 < Histogram::kCodesOfLane && before + own[code] <= middle) before += own[code++];
  code += lane * Histogram::kCodesOfLane;
  return static_cast<uint8_t>(__shfl_sync(kAllLanes, code, 31 - __clz(static_cast<int>(begun))));
}

// One token of K or V, by a warp.
template <DType kDType>
__device__ void QuantizeRow(QuantizeShared& shared, const EncodeLaunch& launch, const TokenRow& row,
                            const std::byte* extent, uint8_t* codes) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const float2 range = RangeOf<kDType>(row, extent);
  const uint16_t scale = ScaleOf(range.x, range.y, launch.relative_scale[row.tensor]);
  const float step = Bf16ToFloat(scale);
  const int zero = StepsOf(range.x, step);
  uint32_t largest = 0;
  const bool sorted = launch.repacking == Repacking::kMedian && row.tensor == 1;
  if (sorted) {
    Histogram& histogram = shared.histogram[threadIdx.x / 32];
    for (int i = lane; i < Histogram::kCodes; i += 32) histogram.count[i] = 0;
    __syncwarp();
    WriteCodes<kDType>(row, extent, step, zero, codes, [&](uint32_t code) {
      largest = max(largest, code);
      atomicAdd(&histogram.count[code], 1u);
    });
    __syncwarp();
    const uint8_t median = MedianOf(histogram, static_cast<uint32_t>(8 * row.octets));
    if (lane == 0) shared.median[row.token] = median;
    __syncwarp();  // The next row clears what this one reads.
  } else {
    WriteCodes<kDType>(row, extent, step, zero, codes,
                       [&](uint32_t code) { largest = max(largest, code); });
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (lane != 0) return;
  shared.scale[row.tensor][row.token] = scale;
  shared.zero[row.tensor][row.token] = static_cast<int16_t>(zero);
  atomicMax(&shared.largest_code[row.tensor], largest);
  if (!IsInRange(range.x, range.y)) shared.out_of_range = 1;
}

// Largest median first; where tokens are alike the smaller one.
__device__ __forceinline__ int PlaceByMedian(const QuantizeShared& shared, int token) {
  const uint8_t own = shared.median[token];
  int place = 0;
  for (int other = 0; other < kBlockTokens; ++other) {
    const uint8_t median = shared.median[other];
    place += median > own || (median == own && other < token);
  }
  return place;
}

// One thread block a block of tokens.
template <DType kDType>
__global__ void __launch_bounds__(kQuantizeThreads)
    QuantizeKernel(const __grid_constant__ EncodeLaunch launch) {
  __shared__ QuantizeShared shared;
  const SegmentJob& job = launch.jobs[blockIdx.y];
  const int block = static_cast<int>(blockIdx.x);
  if (block >= static_cast<int>(job.block_count)) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    shared.largest_code[0] = shared.largest_code[1] = 0;
    shared.out_of_range = 0;
  }
  __syncthreads();

  const size_t block_of_batch = launch.BlockOf(blockIdx.y, block);
  const std::byte* extent = job.blocks[block];
  uint8_t* codes = launch.CodesOf(block_of_batch);
  for (int i = thread / 32; i < 2 * kBlockTokens; i += kQuantizeWarps) {
    const TokenRow row{i / kBlockTokens, i % kBlockTokens, launch.head_dim,
                       launch.kv_heads * launch.head_dim / 8};
    QuantizeRow<kDType>(shared, launch, row, extent, codes);
  }
  __syncthreads();
  if (thread < kBlockTokens) {
    const int place =
        launch.repacking == Repacking::kMedian ? PlaceByMedian(shared, thread) : thread;
    shared.order[place] = static_cast<uint8_t>(thread);
  }
  __syncthreads();
  if (thread < kBlockTokens) {
    TokenTable* const table = TokenTableOf(launch.BodyOf(job), block);
    const int token = shared.order[thread];
    table->k_scale[thread] = shared.scale[0][token];
    table->v_scale[thread] = shared.scale[1][token];
    table->k_zero[thread] = shared.zero[0][token];
    table->v_zero[thread] = shared.zero[1][token];
    table->order[thread] = static_cast<uint8_t>(token);
  }
  if (thread == 0) {
    launch.summaries[block_of_batch] = {{shared.largest_code[0], shared.largest_code[1]},
                                        shared.out_of_range};
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_QUANTIZE_CUH_
