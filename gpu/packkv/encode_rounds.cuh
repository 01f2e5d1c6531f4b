// Second and fourth kernel of an encoding: how long rounds are, and their bytes. A warp takes a
// round; each lane has kHeadDim / 32 channels that follow each other.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/encode_launch.cuh"

namespace kvdepot::packkv {

inline constexpr int kRoundWarps = 4;
inline constexpr int kRoundThreads = 32 * kRoundWarps;

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

// Numbers of channels that have a part in the plane of 1 << i bits, in bits 16 i .. 16 i + 15.
using PlaneCounts = uint64_t;

// Of a plane of so many bits.
__device__ __forceinline__ int CountOf(PlaneCounts counts, int plane) {
  return static_cast<int>(counts >> (16 * (31 - __clz(plane))) & 0xFFFFu);
}

template <class R>
__device__ __forceinline__ PlaneCounts CountsOfLane(const LaneCodes<R>& codes) {
  PlaneCounts counts = 0;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    const uint64_t width = static_cast<uint64_t>(codes.width[c]);
    counts += (width & 1) | (width & 2) << 15 | (width & 4) << 30 | (width & 8) << 45;
  }
  return counts;
}

template <class R>
__device__ __forceinline__ uint32_t PlaneBytes(PlaneCounts counts, int plane) {
  return static_cast<uint32_t>((CountOf(counts, plane) * plane * R::kPackTokens + 7) / 8);
}

// Which tile a thread block has.
struct TileOfJob {
  int block;
  int head;
  int tensor;  // 0: K
  int number;  // 2 head + tensor
};

__device__ __forceinline__ TileOfJob OwnTile(const EncodeLaunch& launch) {
  const int number = static_cast<int>(blockIdx.x) % launch.tiles();
  return {static_cast<int>(blockIdx.x) / launch.tiles(), number / 2, number % 2, number};
}

template <class R>
__device__ __forceinline__ const uint8_t* CodesOfTile(const EncodeLaunch& launch,
                                                      const TileOfJob& tile) {
  return launch.CodesOf(launch.BlockOf(blockIdx.y, tile.block)) +
         static_cast<size_t>(tile.number) * (kBlockTokens * R::kHeadDim);
}

// One thread block a tile.
template <class R>
__global__ void __launch_bounds__(kRoundThreads)
    MeasureRoundsKernel(const __grid_constant__ EncodeLaunch launch) {
  const SegmentJob& job = launch.jobs[blockIdx.y];
  const TileOfJob tile = OwnTile(launch);
  if (tile.block >= static_cast<int>(job.block_count)) return;
  const uint8_t* codes = CodesOfTile<R>(launch, tile);
  const uint8_t* order = TokenTableOf(launch.BodyOf(job), tile.block)->order;
  uint16_t* plane_units = launch.PlaneUnitsOf(launch.BlockOf(blockIdx.y, tile.block), tile.number);
  for (int round = static_cast<int>(threadIdx.x / 32); round < R::kRounds; round += kRoundWarps) {
    PlaneCounts counts = CountsOfLane(LoadRound<R>(codes, order + round * R::kPackTokens));
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2)
      counts += __shfl_xor_sync(kAllLanes, counts, distance);
    uint32_t bytes = 0;
    for (const int plane : {8, 4, 2, 1}) bytes += PlaneBytes<R>(counts, plane);
    if (threadIdx.x % 32 == 0)
      plane_units[round] = static_cast<uint16_t>((bytes + kUnitBytes - 1) / kUnitBytes);
  }
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
  const int width_bits = WidthCodeBits(code_bits);
  uint64_t minima = 0;
  uint64_t widths = 0;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    minima |= static_cast<uint64_t>(codes.least_of(c)) << (c * code_bits);
    widths |= static_cast<uint64_t>(codes.width[c]) << (c * width_bits);
  }
  const int channel = R::kChannels * static_cast<int>(threadIdx.x % 32);
  OrBits(round, static_cast<uint32_t>(channel * code_bits), minima);
  OrBits(round, static_cast<uint32_t>(R::kHeadDim * code_bits + channel * width_bits), widths);
}

// Stores a channel's part of a plane that begins `at` bytes behind the round's begin. Parts of
// whole bytes are aligned to their size.
template <int kBits>
__device__ __forceinline__ void PutPart(uint32_t* round, uint32_t at, int number,
                                        const uint32_t* part) {
  std::byte* const plane = reinterpret_cast<std::byte*>(round) + at;
  if constexpr (kBits == 128) {
    reinterpret_cast<uint4*>(plane)[number] = make_uint4(part[0], part[1], part[2], part[3]);
  } else if constexpr (kBits == 64) {
    reinterpret_cast<uint2*>(plane)[number] = make_uint2(part[0], part[1]);
  } else if constexpr (kBits == 32) {
    reinterpret_cast<uint32_t*>(plane)[number] = part[0];
  } else if constexpr (kBits == 16) {
    reinterpret_cast<uint16_t*>(plane)[number] = static_cast<uint16_t>(part[0]);
  } else if constexpr (kBits == 8) {
    reinterpret_cast<uint8_t*>(plane)[number] = static_cast<uint8_t>(part[0]);
  } else {
    OrBits(round, 8 * at + static_cast<uint32_t>(kBits * number), part[0]);
  }
}

// A lane's parts of a plane; `number` is that of the first among the plane's.
template <class R, int kPlane>
__device__ __forceinline__ void PutPlane(const LaneCodes<R>& codes, uint32_t* round, uint32_t at,
                                         int number) {
  constexpr int kPartBits = kPlane * R::kPackTokens;
#pragma unroll
  for (int c = 0; c < R::kChannels; ++c) {
    if ((codes.width[c] & kPlane) == 0) continue;
    const int shift = 8 * (c % 4) + BitsBelow(codes.width[c], kPlane);
    uint32_t part[(kPartBits + 31) / 32] = {};
#pragma unroll
    for (int t = 0; t < R::kPackTokens; ++t) {
      const int bit = BitOf(R::kPackTokens, kPlane, t);
      part[bit / 32] |= (codes.offset[t][c / 4] >> shift & ((1u << kPlane) - 1)) << (bit % 32);
    }
    PutPart<kPartBits>(round, at, number++, part);
  }
}

template <class R>
__device__ __forceinline__ void PutPlanes(const LaneCodes<R>& codes, uint32_t* round, uint32_t at) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const PlaneCounts own = CountsOfLane(codes);
  PlaneCounts before = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const PlaneCounts other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  const PlaneCounts all = __shfl_sync(kAllLanes, before, 31);
  before -= own;
  PutPlane<R, 8>(codes, round, at, CountOf(before, 8));
  at += PlaneBytes<R>(all, 8);
  PutPlane<R, 4>(codes, round, at, CountOf(before, 4));
  at += PlaneBytes<R>(all, 4);
  PutPlane<R, 2>(codes, round, at, CountOf(before, 2));
  at += PlaneBytes<R>(all, 2);
  __syncwarp();  // Parts smaller than a byte may share words with those of the plane before.
  PutPlane<R, 1>(codes, round, at, CountOf(before, 1));
}

// One thread block a tile. A round is put together in shared memory, so that its bytes leave in
// whole units and each of them once.
template <class R>
__global__ void __launch_bounds__(kRoundThreads)
    WriteRoundsKernel(const __grid_constant__ EncodeLaunch launch) {
  __shared__ uint4 rounds[kRoundWarps][R::kUnitsMax];
  const SegmentJob& job = launch.jobs[blockIdx.y];
  const TileOfJob tile = OwnTile(launch);
  const int blocks = static_cast<int>(job.block_count);
  if (tile.block >= blocks || launch.out_of_range[blockIdx.y] != 0) return;
  std::byte* const body = launch.BodyOf(job);
  const BodyHeader& header = *reinterpret_cast<const BodyHeader*>(body);
  const int code_bits = tile.tensor == 0 ? header.k_bits : header.v_bits;
  const uint8_t* codes = CodesOfTile<R>(launch, tile);
  const uint8_t* order = TokenTableOf(body, tile.block)->order;
  const std::byte* entry = EntryOf(launch, body, blocks, tile.block * launch.kv_heads + tile.head);
  const uint16_t* units_of_round =
      reinterpret_cast<const uint16_t*>(entry + EntryUnitsAt(tile.tensor == 0, R::kPackTokens));
  const uint32_t begin = reinterpret_cast<const uint32_t*>(entry)[tile.tensor];

  const uint32_t lane = threadIdx.x % 32;
  uint4* const built = rounds[threadIdx.x / 32];
  uint32_t* const words = reinterpret_cast<uint32_t*>(built);
  for (int round = static_cast<int>(threadIdx.x / 32); round < R::kRounds; round += kRoundWarps) {
    uint32_t at = begin;
    for (int before = 0; before < round; ++before) at += units_of_round[before];
    const uint32_t units = units_of_round[round];
    for (uint32_t i = lane; i < units; i += 32) built[i] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    const LaneCodes<R> loaded = LoadRound<R>(codes, order + round * R::kPackTokens);
    PutHeader(loaded, code_bits, words);
    PutPlanes(loaded, words, static_cast<uint32_t>(RoundHeaderBytes(R::kHeadDim, code_bits)));
    __syncwarp();
    uint4* const to = reinterpret_cast<uint4*>(body) + at;
    for (uint32_t i = lane; i < units; i += 32) to[i] = built[i];
    __syncwarp();
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_
