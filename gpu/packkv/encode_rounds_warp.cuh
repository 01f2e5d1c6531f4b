// How a warp measures and writes a round (gpu/FORMAT.md, "packkv"). Each lane has kHeadDim / 32
// channels that follow each other.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_WARP_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_WARP_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/format.h"

namespace kvdepot::packkv {

template <int kPackTokensOfRound, int kHeadDimOfRound>
struct PackedRound {
  static constexpr int kPackTokens = kPackTokensOfRound;
  static constexpr int kHeadDim = kHeadDimOfRound;
  static constexpr int kRounds = kBlockTokens / kPackTokens;  // of a tile
  static constexpr int kChannels = kHeadDim / 32;
  // That hold a lane's codes of one token, a byte each.
  static constexpr int kWords = (kChannels + 3) / 4;
  // No code has more than 8 bits.
  static constexpr size_t kUnitsMax =
      (RoundHeaderBytes(kHeadDim, 8) + kPackTokens * kHeadDim) / kUnitBytes;
};

// A lane's part of a round. Channels are bytes of words, the first in the lowest one.
template <class R>
struct LaneCodes {
  uint32_t least[R::kWords];
  uint32_t offset[R::kPackTokens][R::kWords];  // codes less the least
  int width[R::kChannels];

  __device__ uint32_t least_of(int channel) const {
    return least[channel / 4] >> (8 * (channel % 4)) & 0xFFu;
  }
};

template <class R>
__device__ __forceinline__ void LoadRow(const uint8_t* row, uint32_t (&words)[R::kWords]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (R::kChannels == 2) {
    words[0] = reinterpret_cast<const uint16_t*>(row)[lane];
  } else if constexpr (R::kChannels == 4) {
    words[0] = reinterpret_cast<const uint32_t*>(row)[lane];
  } else {
    const uint2 pair = reinterpret_cast<const uint2*>(row)[lane];
    words[0] = pair.x, words[1] = pair.y;
  }
}

// Of the tokens order[0 .. kPackTokens - 1]. `codes` are those of the tile.
template <class R>
__device__ __forceinline__ LaneCodes<R> LoadRound(const uint8_t* codes, const uint8_t* order) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int own_token = lane < R::kPackTokens ? order[lane] : 0;
  LaneCodes<R> loaded;
#pragma unroll
  for (int t = 0; t < R::kPackTokens; ++t) {
    const int token = __shfl_sync(kAllLanes, own_token, t);
    LoadRow<R>(codes + token * R::kHeadDim, loaded.offset[t]);
  }
  uint32_t range[R::kWords];
#pragma unroll
  for (int w = 0; w < R::kWords; ++w) {
    uint32_t least = loaded.offset[0][w];
    uint32_t most = least;
#pragma unroll
    for (int t = 1; t < R::kPackTokens; ++t) {
      least = __vminu4(least, loaded.offset[t][w]);
      most = __vmaxu4(most, loaded.offset[t][w]);
    }
    // No byte borrows from the next one.
#pragma unroll
    for (int t = 0; t < R::kPackTokens; ++t) loaded.offset[t][w] -= least;
    loaded.least[w] = least;
    range[w] = most - least;
  }
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c)
    loaded.width[c] = 32 - __clz(static_cast<int>(range[c / 4] >> (8 * (c % 4)) & 0xFFu));
  return loaded;
}

// Units of a round but for its header, in all lanes.
template <class R>
__device__ __forceinline__ uint32_t MeasureParts(const LaneCodes<R>& codes) {
  int width = 0;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) width += codes.width[c];
  const uint32_t bits = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(width)) * R::kPackTokens;
  constexpr uint32_t kUnitBits = 8 * kUnitBytes;
  return (bits + kUnitBits - 1) / kUnitBits;
}

// Into shared memory that was zero there, from bit `at` on. Others may write to the same words.
__device__ __forceinline__ void OrBits(uint32_t* words, uint32_t at, uint64_t bits) {
  words += at / 32;
  const uint32_t shift = at % 32;
  const uint64_t rest = bits >> (32 - shift);
  atomicOr(words, static_cast<uint32_t>(bits << shift));
  if (static_cast<uint32_t>(rest) != 0) atomicOr(words + 1, static_cast<uint32_t>(rest));
  if (rest >> 32 != 0) atomicOr(words + 2, static_cast<uint32_t>(rest >> 32));
}

template <class R>
__device__ __forceinline__ void PutHeader(const LaneCodes<R>& codes, int code_bits,
                                          uint32_t* round) {
  const int channel = R::kChannels * static_cast<int>(threadIdx.x % 32);
  uint64_t minima = 0;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c)
    minima |= static_cast<uint64_t>(codes.least_of(c)) << (c * code_bits);
  OrBits(round, static_cast<uint32_t>(channel * code_bits), minima);
  for (int bit = 0; bit < WidthCodeBits(code_bits); ++bit) {
    uint32_t row = 0;
#pragma unroll
    for (int c = 0; c < R::kChannels; ++c)
      row |= (static_cast<uint32_t>(codes.width[c]) >> bit & 1) << c;
    OrBits(round, static_cast<uint32_t>(R::kHeadDim * (code_bits + bit) + channel), row);
  }
}

// kBits of each code of a channel, from bit `below` on.
template <class R, int kBits>
__device__ __forceinline__ uint32_t PartOf(const LaneCodes<R>& codes, int channel, int below) {
  const int shift = 8 * (channel % 4) + below;
  uint32_t part = 0;
#pragma unroll
  for (int t = 0; t < R::kPackTokens; ++t) {
    part |= (codes.offset[t][channel / 4] >> shift & ((1u << kBits) - 1))
            << BitOf(R::kPackTokens, kBits, t);
  }
  return part;
}

// Stores a part of kBits bits that `number` of its size lie before.
template <int kBits>
__device__ __forceinline__ void PutPart(uint32_t* parts, uint32_t number, uint32_t part) {
  if constexpr (kBits == 32) {
    parts[number] = part;
  } else if constexpr (kBits == 16) {
    reinterpret_cast<uint16_t*>(parts)[number] = static_cast<uint16_t>(part);
  } else if constexpr (kBits == 8) {
    reinterpret_cast<uint8_t*>(parts)[number] = static_cast<uint8_t>(part);
  } else {
    OrBits(parts, kBits * number, part);
  }
}

// Numbers of parts: pairs in the low 16 bits, singles in the high ones.
using PartCounts = uint32_t;

__device__ __forceinline__ uint32_t PairsOf(PartCounts counts) { return counts & 0xFFFFu; }
__device__ __forceinline__ uint32_t SinglesOf(PartCounts counts) { return counts >> 16; }

template <class R>
__device__ __forceinline__ PartCounts CountsOfLane(const LaneCodes<R>& codes) {
  PartCounts counts = 0;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    const uint32_t width = static_cast<uint32_t>(codes.width[c]);
    counts += width / 2 | (width & 1) << 16;
  }
  return counts;
}

// `parts`: behind the round's header, zero so far.
template <class R>
__device__ __forceinline__ void PutParts(const LaneCodes<R>& codes, uint32_t* parts) {
  const PartCounts own = CountsOfLane(codes);
  PartCounts before = own;  // own ones among them at first
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    ptx::AddFromLanesBefore(before, distance, 32);
  const uint32_t pairs = PairsOf(__shfl_sync(kAllLanes, before, 31));
  before -= own;
  uint32_t number = PairsOf(before);
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    for (int below = 0; below + 2 <= codes.width[c]; below += 2)
      PutPart<2 * R::kPackTokens>(parts, number++, PartOf<R, 2>(codes, c, below));
  }
  __syncwarp();  // Singles smaller than a byte may share words with pairs.
  number = 2 * pairs + SinglesOf(before);
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    if (codes.width[c] % 2 == 0) continue;
    PutPart<R::kPackTokens>(parts, number++, PartOf<R, 1>(codes, c, codes.width[c] - 1));
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_WARP_CUH_
