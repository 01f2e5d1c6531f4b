// Second and fourth kernel of an encoding: how long rounds are, and their bytes. A warp takes a
// round.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_

#include "gpu/packkv/encode_launch.cuh"
#include "gpu/packkv/encode_rounds_warp.cuh"

namespace kvdepot::packkv {

inline constexpr int kRoundWarps = 4;
inline constexpr int kRoundThreads = 32 * kRoundWarps;

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
  uint16_t* part_units = launch.PartUnitsOf(launch.BlockOf(blockIdx.y, tile.block), tile.number);
  for (int round = static_cast<int>(threadIdx.x / 32); round < R::kRounds; round += kRoundWarps) {
    const uint32_t units = MeasureParts(LoadRound<R>(codes, order + round * R::kPackTokens));
    if (threadIdx.x % 32 == 0) part_units[round] = static_cast<uint16_t>(units);
  }
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
    PutParts(loaded, words + RoundHeaderBytes(R::kHeadDim, code_bits) / sizeof(uint32_t));
    __syncwarp();
    uint4* const to = reinterpret_cast<uint4*>(body) + at;
    for (uint32_t i = lane; i < units; i += 32) to[i] = built[i];
    __syncwarp();
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_ROUNDS_CUH_
