// Third kernel of an encoding: where every round of a segment begins, and what says so.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_LAYOUT_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_LAYOUT_CUH_

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/encode_launch.cuh"

namespace kvdepot::packkv {

inline constexpr int kLayoutWarps = 8;
inline constexpr int kLayoutThreads = 32 * kLayoutWarps;

// Of a segment. Arrays of two are of K and V.
struct CodeRange {
  bool in_range;
  int bits[2];
};

__device__ __forceinline__ CodeRange CodeRangeOf(const EncodeLaunch& launch,
                                                 const SegmentJob& job) {
  CodeRange range{true, {0, 0}};
  for (int block = 0; block < static_cast<int>(job.block_count); ++block) {
    const BlockSummary summary = launch.summaries[launch.BlockOf(blockIdx.x, block)];
    if (summary.out_of_range != 0) range.in_range = false;
    for (int tensor = 0; tensor < 2; ++tensor)
      range.bits[tensor] =
          max(range.bits[tensor], 32 - __clz(static_cast<int>(summary.largest_code[tensor])));
  }
  // Only what is not finite has more bits; whatever was in the blocks, no byte is written behind
  // the largest body.
  for (int tensor = 0; tensor < 2; ++tensor)
    if (range.bits[tensor] > launch.code_bits_max[tensor]) range.in_range = false;
  return range;
}

// The sum of `value` over this thread and those before it, and over all.
struct PrefixSum {
  uint32_t up_to_own;
  uint32_t total;
};

__device__ __forceinline__ PrefixSum SumOverThreads(uint32_t value) {
  __shared__ uint32_t sum_of_warp[kLayoutWarps];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += other;
  }
  __syncthreads();  // Sums before these have been read.
  if (lane == 31) sum_of_warp[warp] = value;
  __syncthreads();
  PrefixSum sum{value, 0};
#pragma unroll
  for (int i = 0; i < kLayoutWarps; ++i) {
    if (i < warp) sum.up_to_own += sum_of_warp[i];
    sum.total += sum_of_warp[i];
  }
  return sum;
}

// Writes the units of a tile's rounds to the directory and returns their sum.
__device__ __forceinline__ uint32_t WriteRoundUnits(const EncodeLaunch& launch,
                                                    const CodeRange& range, int tile,
                                                    std::byte* entry) {
  const int tensor = tile % 2;
  const uint32_t header_units =
      static_cast<uint32_t>(RoundHeaderBytes(launch.head_dim, range.bits[tensor]) / kUnitBytes);
  const uint16_t* part_units = launch.PartUnitsOf(launch.BlockOf(blockIdx.x, 0), tile);
  uint16_t* units_of_round =
      reinterpret_cast<uint16_t*>(entry + EntryUnitsAt(tensor == 0, launch.pack_tokens));
  uint32_t sum = 0;
  for (int round = 0; round < launch.rounds(); ++round) {
    const uint32_t units = header_units + part_units[round];
    units_of_round[round] = static_cast<uint16_t>(units);
    sum += units;
  }
  return sum;
}

__device__ __forceinline__ void WriteBodyHeader(const EncodeLaunch& launch, const CodeRange& range,
                                                std::byte* body) {
  BodyHeader header{};
  header.k_relative_scale = launch.relative_scale[0];
  header.v_relative_scale = launch.relative_scale[1];
  header.pack_tokens = static_cast<uint8_t>(launch.pack_tokens);
  header.repacking = static_cast<uint8_t>(launch.repacking);
  header.k_bits = static_cast<uint8_t>(range.bits[0]);
  header.v_bits = static_cast<uint8_t>(range.bits[1]);
  *reinterpret_cast<BodyHeader*>(body) = header;
}

// One thread block a job, one thread a tile at a time.
static __global__ void __launch_bounds__(kLayoutThreads)
    LayoutKernel(const __grid_constant__ EncodeLaunch launch) {
  const SegmentJob& job = launch.jobs[blockIdx.x];
  const int blocks = static_cast<int>(job.block_count);
  const CodeRange range = CodeRangeOf(launch, job);
  if (threadIdx.x == 0) launch.out_of_range[blockIdx.x] = range.in_range ? 0 : 1;
  if (!range.in_range) {
    if (threadIdx.x == 0) launch.body_bytes[blockIdx.x] = 0;
    return;
  }
  std::byte* const body = launch.BodyOf(job);
  const int tiles = blocks * launch.tiles();
  const size_t first_tile = TilesAt(launch.kv_heads, blocks, launch.pack_tokens);
  uint32_t begin = static_cast<uint32_t>(first_tile / kUnitBytes);
  for (int first = 0; first < tiles; first += kLayoutThreads) {
    const int tile = first + static_cast<int>(threadIdx.x);
    std::byte* entry = EntryOf(launch, body, blocks, tile / 2);
    const uint32_t units = tile < tiles ? WriteRoundUnits(launch, range, tile, entry) : 0;
    const PrefixSum sum = SumOverThreads(units);
    if (tile < tiles) reinterpret_cast<uint32_t*>(entry)[tile % 2] = begin + sum.up_to_own - units;
    begin += sum.total;
  }
  // Up to the first tile, less than a unit.
  std::byte* const padding = EntryOf(launch, body, blocks, tiles / 2) + threadIdx.x;
  if (padding < body + first_tile) *padding = std::byte{0};
  if (threadIdx.x != 0) return;
  WriteBodyHeader(launch, range, body);
  launch.body_bytes[blockIdx.x] = static_cast<uint64_t>(begin) * kUnitBytes;
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_LAYOUT_CUH_
