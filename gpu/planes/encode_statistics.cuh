// The encoder's statistics on the device: steps 1 to 5 of gpu/FORMAT.md, "Arithmetic". Every thread
// block of a cluster computes the same channel statistics from the block sums of all.
#ifndef KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_
#define KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_

#include "gpu/cluster.cuh"
#include "gpu/planes/codec.h"
#include "gpu/planes/encode_tile.cuh"

namespace kvdepot::planes {

// block_sums[block][channel] = sum over the block's tokens, in order, of term(token, pair of
// values), a pair. Thread: two channels of one block.
template <class T, class Term>
__device__ __forceinline__ void SumBlocks(const typename T::Shared& shared, const TilePart& part,
                                          const Term& term, float* block_sums) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int block = warp / T::kWarpsPerBlock;
  if (block >= part.blocks) return;
  const int pair = 32 * (warp % T::kWarpsPerBlock) + static_cast<int>(threadIdx.x % 32);
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll 8
  for (int t = 0; t < kBlockTokens; ++t) {
    const int token = block * kBlockTokens + t;
    const float2 addend = term(token, LoadPair<T::kDType>(RowOf<T>(shared, token), pair));
    sum.x = sum.x + addend.x;
    sum.y = sum.y + addend.y;
  }
  reinterpret_cast<float2*>(block_sums + block * T::kHeadDim)[pair] = sum;
}

// The segment's sum of a channel: block sums in order.
template <class T>
__device__ __forceinline__ float SumOfChannel(const float* block_sums, const TilePart& part,
                                              int channel) {
  float sum = 0.0f;
  for (uint32_t rank = 0; rank < part.ranks; ++rank) {
    float addend[T::kBlocks];
#pragma unroll
    for (int i = 0; i < T::kBlocks; ++i)
      addend[i] = cluster::LoadRemote(block_sums + i * T::kHeadDim + channel, rank);
#pragma unroll
    for (int i = 0; i < T::kBlocks; ++i) {
      if (rank * T::kBlocks + static_cast<uint32_t>(i) < part.block_count) sum = sum + addend[i];
    }
  }
  return sum;
}

__device__ __forceinline__ void SyncCluster() {
  cluster::Arrive();
  cluster::Wait();
}

// Step 1. False if a centre of this thread's leaves fp16.
template <class T>
__device__ bool FindCentres(typename T::Shared& shared, const TilePart& part) {
  SumBlocks<T>(
      shared, part, [](int, float2 x) { return x; }, shared.block_sums[0]);
  SyncCluster();
  bool in_range = true;
  const int channel = static_cast<int>(threadIdx.x);
  if (channel < T::kHeadDim) {
    const float sum = SumOfChannel<T>(shared.block_sums[0], part, channel);
    const uint16_t centre = FloatToFp16(sum / part.token_count);
    in_range = IsFiniteFp16(centre);
    shared.centre[channel] = Fp16ToFloat(centre);
  }
  __syncthreads();
  return in_range;
}

// The sums of step 2 into block_sums[1]; sums of all blocks are there when this returns.
template <class T>
__device__ void SumSquares(typename T::Shared& shared, const TilePart& part) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int pair = 32 * (warp % T::kWarpsPerBlock) + static_cast<int>(threadIdx.x % 32);
  const float2 centre = reinterpret_cast<const float2*>(shared.centre)[pair];
  const auto square = [&](int, float2 x) {
    const float2 d = make_float2(x.x - centre.x, x.y - centre.y);
    return make_float2(d.x * d.x, d.y * d.y);
  };
  SumBlocks<T>(shared, part, square, shared.block_sums[1]);
  SyncCluster();
}

// Step 2. False if a sum of this thread's overflows.
template <class T>
__device__ bool FindDeviations(typename T::Shared& shared, const TilePart& part) {
  SumSquares<T>(shared, part);
  bool in_range = true;
  const int channel = static_cast<int>(threadIdx.x);
  if (channel < T::kHeadDim) {
    const float sum = SumOfChannel<T>(shared.block_sums[1], part, channel);
    in_range = IsFiniteFloat(sum);
    const float deviation = fmaxf(sqrtf(sum / part.token_count), kDeviationMin);
    shared.deviation_or_step[channel] = deviation;
    shared.inverse_or_rest[channel] = 1.0f / deviation;
  }
  __syncthreads();
  return in_range;
}

// Step 3 of one token, to the letter, by a whole warp; the same result in every lane.
template <class T>
__device__ float ExactTokenRms(const typename T::Shared& shared, int token) {
  constexpr int kPerLane = T::kHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  float square[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int channel = 32 * i + lane;
    const float x = LoadValue<T::kDType>(RowOf<T>(shared, token), channel);
    const float ratio = (x - shared.centre[channel]) / shared.deviation_or_step[channel];
    square[i] = ratio * ratio;
  }
#pragma unroll
  for (int half = kPerLane / 2; half >= 1; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) square[i] = square[i] + square[i + half];
  }
  float sum = square[0];
  for (int half = 16; half >= 1; half /= 2) sum = sum + __shfl_xor_sync(kAllLanes, sum, half);
  return fmaxf(sqrtf(sum / static_cast<float>(T::kHeadDim)), kTokenRmsMin);
}

// Adds up 16 values a lane over the 2^k lanes of a group, k = 3, 4 or 5, moving half of what is
// left in each step: value i of the group ends in lane i (16 lanes), 2 values in lane i / 2 (8
// lanes), or in lanes 2 i and 2 i + 1 (32 lanes).
template <int kGroupLanes>
__device__ __forceinline__ void SumOverLanes(float (&values)[16]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int count = 16;
#pragma unroll
  for (int distance = kGroupLanes / 2; distance >= 1; distance /= 2) {
    if (count == 1) {
      values[0] = values[0] + __shfl_xor_sync(kAllLanes, values[0], distance);
      continue;
    }
    count /= 2;
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i >= count) continue;
      const float kept = upper ? values[i + count] : values[i];
      const float sent = upper ? values[i] : values[i + count];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, distance);
    }
  }
}

// What the quick sum of squares of a token may miss of the exact one's root, with a wide margin:
// its terms and partial sums are off by less than 2^-20.
inline constexpr float kQuickRmsError = 7.62939453125e-6f;  // 2^-17
// Above this the exact steps decide whether something overflows.
inline constexpr float kQuickRmsMax = 1e15f;

// Step 3 and the rounding of step 4: rounded scales into token_scale[].high. A token's scale has 3
// bits of mantissa: nearly always a quick estimate of the rms settles them; where it does not, the
// exact rms is computed. False if an rms of this thread's is not finite.
template <class T>
__device__ bool FindTokenScales(typename T::Shared& shared, const TilePart& part) {
  constexpr int kGroupLanes = T::kHeadDim / 8;  // a lane takes 8 channels of a row
  constexpr int kRows = 32 / kGroupLanes;       // rows of a warp at a time
  constexpr int kWarpTokens = T::kTokens / kEncodeWarps;
  static_assert(kWarpTokens == 16 * kRows, "16 values a lane");
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int octet = lane % kGroupLanes;
  const int row = lane / kGroupLanes;
  const int first = warp * kWarpTokens;
  uint32_t largest = 0;
  bool in_range = true;
  if (first < part.tokens()) {
    float centre[8], inverse[8], sums[16];
    LoadOctet<DType::kFp32>(reinterpret_cast<const std::byte*>(shared.centre), octet, centre);
    LoadOctet<DType::kFp32>(reinterpret_cast<const std::byte*>(shared.inverse_or_rest), octet,
                            inverse);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float x[8];
      LoadOctet<T::kDType>(RowOf<T>(shared, first + kRows * i + row), octet, x);
      sums[i] = 0.0f;
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float ratio = (x[c] - centre[c]) * inverse[c];
        sums[i] = fmaf(ratio, ratio, sums[i]);
      }
    }
    SumOverLanes<kGroupLanes>(sums);
    constexpr int kOwned = kGroupLanes == 8 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int value = kGroupLanes == 8 ? 2 * octet + i : kGroupLanes == 16 ? octet : octet / 2;
      const int token = first + kRows * value + row;
      const float quick = sqrtf(sums[i] / static_cast<float>(T::kHeadDim));
      uint32_t rounded = RoundedTokenScale(fmaxf(quick * (1.0f - kQuickRmsError), kTokenRmsMin));
      const uint32_t rounded_high =
          RoundedTokenScale(fmaxf(quick * (1.0f + kQuickRmsError), kTokenRmsMin));
      const bool settled = rounded == rounded_high && quick < kQuickRmsMax;
      for (unsigned open = __ballot_sync(kAllLanes, !settled); open != 0; open &= open - 1) {
        const int owner = __ffs(static_cast<int>(open)) - 1;
        const float rms = ExactTokenRms<T>(shared, __shfl_sync(kAllLanes, token, owner));
        if (lane != owner) continue;
        rounded = RoundedTokenScale(rms);
        in_range = in_range && IsFiniteFloat(rms);
      }
      shared.token_scale[token].high = FloatFromBits(rounded);
      largest = rounded > largest ? rounded : largest;
    }
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (lane == 0) atomicMax(&shared.largest_rounded, largest);
  SyncCluster();
  return in_range;
}

// Steps 4 and 5 up to the sums: token scales and their codes, sums into block_sums[2]; sums of all
// blocks are there when this returns. `write_code` stores a token's code.
template <class T, class WriteCode>
__device__ void SumScaledSquares(typename T::Shared& shared, const TilePart& part,
                                 const WriteCode& write_code) {
  uint32_t largest = 0;
  for (uint32_t rank = 0; rank < part.ranks; ++rank) {
    const uint32_t other = cluster::LoadRemote(&shared.largest_rounded, rank);
    largest = other > largest ? other : largest;
  }
  for (int token = static_cast<int>(threadIdx.x); token < part.tokens(); token += kEncodeThreads) {
    const uint8_t code = TokenScaleCode(FloatBits(shared.token_scale[token].high), largest);
    write_code(token, code);
    shared.token_scale[token] = ReciprocalOf(TokenScaleValue(code));
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int pair = 32 * (warp % T::kWarpsPerBlock) + static_cast<int>(threadIdx.x % 32);
  const float2 centre = reinterpret_cast<const float2*>(shared.centre)[pair];
  const auto scaled_square = [&](int token, float2 x) {
    const Reciprocal scale = shared.token_scale[token];
    const float2 z = make_float2(Divide(x.x - centre.x, scale), Divide(x.y - centre.y, scale));
    return make_float2(z.x * z.x, z.y * z.y);
  };
  SumBlocks<T>(shared, part, scaled_square, shared.block_sums[2]);
  SyncCluster();
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_
