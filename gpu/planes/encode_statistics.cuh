// The encoder's statistics on the device: steps 1 to 6 of gpu/FORMAT.md, "Arithmetic".
#ifndef KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_
#define KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_

#include "gpu/cluster.cuh"
#include "gpu/planes/codec.h"
#include "gpu/planes/encode_tile.cuh"

namespace kvdepot::planes {

// The kinds of sums, in order.
enum SumKind { kSumOfValues = 0, kSumOfSquares = 1, kSumOfScaledSquares = 2 };

// Sends the sums over each block's tokens, in order, of term(token, pair of values), a pair, to the
// channels' owners. Thread: two channels of one block.
template <class T, class Term>
__device__ __forceinline__ void SendBlockSums(typename T::Shared& shared, const TilePart& part,
                                              SumKind kind, const Term& term) {
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
  const uint32_t slice = static_cast<uint32_t>(2 * pair / kSliceChannels);
  const uint32_t block_of_segment = part.rank * T::kBlocks + static_cast<uint32_t>(block);
  const uint32_t row = part.OwnNumberOf(slice) * part.block_count + block_of_segment;
  float* to = shared.sums + row * kSliceChannels + 2 * pair % kSliceChannels;
  cluster::Send(reinterpret_cast<float2*>(to), sum, &shared.sums_received[kind],
                part.OwnerOf(slice));
}

// For every channel that this thread block owns: its sum over the segment, in order, given to
// finish(channel, sum) by one lane; all lanes of a warp that owns any do so together.
template <class T, class Finish>
__device__ __forceinline__ void FinishOwnChannels(typename T::Shared& shared, const TilePart& part,
                                                  SumKind kind, const Finish& finish) {
  const uint32_t own_number = threadIdx.x / 32;
  const uint32_t slice = part.SliceOf(own_number);
  if (slice >= T::kSlices) return;
  cluster::WaitFor(&shared.sums_received[kind]);
  const uint32_t lane = threadIdx.x % 32;
  const float* sums = shared.sums + own_number * part.block_count * kSliceChannels + lane;
  float sum = 0.0f;
#pragma unroll 4
  for (uint32_t block = 0; block < part.block_count; ++block)
    sum = sum + sums[block * kSliceChannels];
  finish(static_cast<int>(slice * kSliceChannels + lane), sum);
}

// Sends a result of an owned channel to all thread blocks.
template <class Value>
__device__ __forceinline__ void SendToAll(const TilePart& part, Value* to, Value value,
                                          uint64_t* barrier) {
  for (uint32_t rank = 0; rank < part.ranks; ++rank) cluster::Send(to, value, barrier, rank);
}

// What the term of a sum needs of a thread's two channels.
template <class T>
__device__ __forceinline__ float2 CentrePair(const typename T::Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int pair = 32 * (warp % T::kWarpsPerBlock) + static_cast<int>(threadIdx.x % 32);
  return reinterpret_cast<const float2*>(shared.centre)[pair];
}

// Step 1. False if a centre of this thread's leaves fp16.
template <class T>
__device__ bool FindCentres(typename T::Shared& shared, const TilePart& part) {
  SendBlockSums<T>(shared, part, kSumOfValues, [](int, float2 x) { return x; });
  bool in_range = true;
  FinishOwnChannels<T>(shared, part, kSumOfValues, [&](int channel, float sum) {
    const uint16_t centre = FloatToFp16(sum / part.token_count);
    in_range = IsFiniteFp16(centre);
    SendToAll(part, &shared.centre[channel], Fp16ToFloat(centre),
              &shared.results_received[kSumOfValues]);
  });
  cluster::WaitFor(&shared.results_received[kSumOfValues]);
  return in_range;
}

// The sums of step 2, to their owners.
template <class T>
__device__ void SendSquares(typename T::Shared& shared, const TilePart& part) {
  const float2 centre = CentrePair<T>(shared);
  SendBlockSums<T>(shared, part, kSumOfSquares, [&](int, float2 x) {
    const float2 d = make_float2(x.x - centre.x, x.y - centre.y);
    return make_float2(d.x * d.x, d.y * d.y);
  });
}

// Step 2. False if a sum of this thread's overflows.
template <class T>
__device__ bool FindDeviations(typename T::Shared& shared, const TilePart& part) {
  SendSquares<T>(shared, part);
  bool in_range = true;
  FinishOwnChannels<T>(shared, part, kSumOfSquares, [&](int channel, float sum) {
    in_range = IsFiniteFloat(sum);
    const float deviation = fmaxf(sqrtf(sum / part.token_count), kDeviationMin);
    uint64_t* barrier = &shared.results_received[kSumOfSquares];
    SendToAll(part, &shared.deviation_or_step[channel], deviation, barrier);
    SendToAll(part, &shared.inverse_or_rest[channel], 1.0f / deviation, barrier);
  });
  cluster::WaitFor(&shared.results_received[kSumOfSquares]);
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
  __syncthreads();
  if (threadIdx.x < part.ranks) {
    cluster::Send(&shared.largest_of_rank[part.rank], shared.largest_rounded,
                  &shared.largest_received, threadIdx.x);
  }
  return in_range;
}

// Step 4: the scales' codes, which write_code(token, code) stores, and their reciprocals.
template <class T, class WriteCode>
__device__ void SettleTokenScales(typename T::Shared& shared, const TilePart& part,
                                  const WriteCode& write_code) {
  cluster::WaitFor(&shared.largest_received);
  uint32_t largest = 0;
  for (uint32_t rank = 0; rank < part.ranks; ++rank) {
    const uint32_t other = shared.largest_of_rank[rank];
    largest = other > largest ? other : largest;
  }
  for (int token = static_cast<int>(threadIdx.x); token < part.tokens(); token += kEncodeThreads) {
    const uint8_t code = TokenScaleCode(FloatBits(shared.token_scale[token].high), largest);
    write_code(token, code);
    shared.token_scale[token] = ReciprocalOf(TokenScaleValue(code));
  }
  __syncthreads();
}

// The sums of step 5, to their owners.
template <class T>
__device__ void SendScaledSquares(typename T::Shared& shared, const TilePart& part) {
  const float2 centre = CentrePair<T>(shared);
  SendBlockSums<T>(shared, part, kSumOfScaledSquares, [&](int token, float2 x) {
    const Reciprocal scale = shared.token_scale[token];
    const float2 z = make_float2(Divide(x.x - centre.x, scale), Divide(x.y - centre.y, scale));
    return make_float2(z.x * z.x, z.y * z.y);
  });
}

// Of a slice: its largest stored scale in fp16, and whether any of its channels spreads at all.
struct StoredSummary {
  uint32_t bits;  // scale, spread << 16

  static __device__ StoredSummary OfWarp(uint16_t stored, bool spread) {
    // Stored scales are not negative: their bits order as they do.
    const uint32_t largest = __reduce_max_sync(kAllLanes, stored);
    return {largest | (__ballot_sync(kAllLanes, spread) != 0 ? 1u << 16 : 0u)};
  }
  __device__ uint16_t stored() const { return static_cast<uint16_t>(bits); }
  __device__ bool spread() const { return bits >> 16 != 0; }
};

// Steps 5 and 6 for the owned channels: write_entry(place, stored scale, centre), fp16 bits, stores
// an entry of the table; the reciprocals of steps, by place, go to all. False if a channel of this
// thread's, or in thread 0 of rank 0 the tensor as a whole, leaves the range of the format.
template <class T, class WriteEntry>
__device__ bool FindSteps(typename T::Shared& shared, const TilePart& part, uint32_t widths,
                          const WriteEntry& write_entry) {
  bool in_range = true;
  FinishOwnChannels<T>(shared, part, kSumOfScaledSquares, [&](int channel, float sum) {
    uint64_t* barrier = &shared.results_received[kSumOfScaledSquares];
    const int place = shared.place_of[channel];
    const int width = GroupWidth(widths, place / kGroupChannels);
    const float deviation = sqrtf(sum / part.token_count);
    in_range = IsFiniteFloat(sum) && IsFiniteFloat(deviation);
    uint16_t stored = width > 0 ? FloatToFp16(ClipEighth(width) * deviation) : 0;
    in_range = in_range && IsFiniteFp16(stored);
    const StoredSummary summary = StoredSummary::OfWarp(stored, deviation > 0.0f);
    if (width > 0 && stored < kStoredScaleMinFp16) stored = kStoredScaleMinFp16;
    const Reciprocal step =
        width > 0 ? ReciprocalOf(FullStep(Fp16ToFloat(stored))) : Reciprocal{0.0f, 0.0f};
    SendToAll(part, &shared.deviation_or_step[place], step.high, barrier);
    SendToAll(part, &shared.inverse_or_rest[place], step.low, barrier);
    if (channel % kSliceChannels == 0)
      SendToAll(part, &shared.stored_of_slice[channel / kSliceChannels], summary.bits, barrier);
    write_entry(place, stored, FloatToFp16(shared.centre[channel]));
  });
  cluster::WaitFor(&shared.results_received[kSumOfScaledSquares]);
  if (threadIdx.x == 0 && part.rank == 0) {
    uint16_t largest = 0;
    bool spread = false;
    for (int slice = 0; slice < T::kSlices; ++slice) {
      const StoredSummary summary{shared.stored_of_slice[slice]};
      if (summary.stored() > largest) largest = summary.stored();
      spread = spread || summary.spread();
    }
    in_range = in_range && (!spread || Fp16ToFloat(largest) >= kStoredScaleNormalMin);
  }
  return in_range;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_STATISTICS_CUH_
