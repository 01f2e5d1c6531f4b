// From partial states of rows to outputs.
#ifndef KVDEPOT_GPU_ATTEND_MERGE_CUH_
#define KVDEPOT_GPU_ATTEND_MERGE_CUH_

#include <cstdint>

#include "gpu/attend_launch.h"
#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Of each warp its first row and a later one, of which other warps have a share too.
inline constexpr uint32_t kEntries = 2 * kWarpsMax;

template <int kRows>
struct MergeMemory {
  uint32_t entry_row[kEntries];  // kNoRow: none
  // Rows of the block's entries, and which entries a row has.
  uint32_t groups;
  uint32_t group_row[kEntries];
  uint32_t group_entries[kEntries];
  // Blocks that had arrived before at the row that the range begins in, and at that it ends in.
  uint32_t arrived_before[2];
  // [query row][state]: what a state counts in the union. Within the block, group i's states follow
  // those of earlier groups.
  float factor[kRows][kLaunchBlocksMax];
  // Of the unions.
  float reference[kEntries][kRows];
  float sum[kEntries][kRows];
};

// A warp's own row, of which nobody else has a share.
template <int kHeadDim, int kRows>
__device__ void StoreRow(const RowView& view, const SharedState<kHeadDim>& state, int lane) {
  for (int index = 4 * lane; index < kRows * kHeadDim; index += 128) {
    const int row = index / kHeadDim;
    const int place = index % kHeadDim;
    view.Store<kHeadDim>(row, place, state.outputs(row, place), state.reference(row),
                         state.sum(row));
  }
}

// Groups entries by row. Warp 0; rows ascend from entry to entry.
template <int kRows>
__device__ void GroupEntries(MergeMemory<kRows>& merge, uint32_t entries, uint32_t lane) {
  const uint32_t row = lane < entries ? merge.entry_row[lane] : kNoRow;
  const uint32_t same = __match_any_sync(kAllLanes, row);
  const bool leads = row != kNoRow && (same & ((1u << lane) - 1)) == 0;
  const uint32_t leaders = __ballot_sync(kAllLanes, leads);
  if (leads) {
    const uint32_t group = __popc(leaders & ((1u << lane) - 1));
    merge.group_row[group] = row;
    merge.group_entries[group] = same;
  }
  if (lane == 0) merge.groups = __popc(leaders);
}

// Factor of the lane's state, and reference and sum of the union of the warp's states; lanes
// without a state hold kNoReference and 0.
struct StateFactor {
  float factor;
  float reference;
  float sum;

  __device__ static StateFactor Of(float own_reference, float own_sum) {
    StateFactor result;
    result.reference = own_reference;
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
      result.reference =
          fmaxf(result.reference, __shfl_xor_sync(kAllLanes, result.reference, mask));
    result.factor = ptx::Exp2(own_reference - result.reference);
    result.sum = result.factor * own_sum;
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
      result.sum += __shfl_xor_sync(kAllLanes, result.sum, mask);
    return result;
  }
};

// Merges what the block's warps have left: rows of this block alone are finished, the others' parts
// stored for whoever arrives last. All threads; ends with a barrier.
template <int kHeadDim, int kTiles>
__device__ void MergeWarps(const AttendParameters& p, const PlanGrid& grid, const PlanCut& begin,
                           const PlanCut& end, const WarpMemoryLayout<kHeadDim, kTiles>& memory,
                           std::byte* warps, MergeMemory<4 * kTiles>& merge) {
  constexpr int kRows = 4 * kTiles;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  if (warp == 0) GroupEntries(merge, 2 * grid.warps_per_cta, lane);
  __syncthreads();
  const uint32_t groups = merge.groups;
  for (uint32_t pair = warp; pair < groups * kRows; pair += blockDim.x / 32) {
    const uint32_t group = pair / kRows;
    const int row = pair % kRows;
    const bool holds = merge.group_entries[group] >> lane & 1u;
    const SharedState<kHeadDim> state{memory.state(warps, lane / 2, lane % 2)};
    const StateFactor factor =
        StateFactor::Of(holds ? state.reference(row) : kNoReference, holds ? state.sum(row) : 0.0f);
    if (holds) merge.factor[row][lane] = factor.factor;
    if (lane == 0) {
      merge.reference[group][row] = factor.reference;
      merge.sum[group][row] = factor.sum;
    }
  }
  __syncthreads();
  constexpr uint32_t kFours = kHeadDim / 4;
  for (uint32_t index = threadIdx.x; index < groups * kRows * kFours; index += blockDim.x) {
    const uint32_t group = index / (kRows * kFours);
    const int row = index / kFours % kRows;
    const int place = 4 * (index % kFours);
    float4 total = {0, 0, 0, 0};
    for (uint32_t entries = merge.group_entries[group]; entries != 0; entries &= entries - 1) {
      const uint32_t entry = __ffs(entries) - 1;
      const SharedState<kHeadDim> state{memory.state(warps, entry / 2, entry % 2)};
      total = AddScaled(total, merge.factor[row][entry], state.outputs(row, place));
    }
    const uint32_t of_launch = merge.group_row[group];
    const bool from_before = begin.row == of_launch && begin.unit > 0;
    const bool to_after = end.row == of_launch && end.unit > 0;
    if (from_before || to_after) {
      RowPart<kHeadDim, kRows>(p.parts, blockIdx.x, from_before)
          .Store(row, place, total, merge.reference[group][row], merge.sum[group][row]);
    } else {
      p.View(of_launch, kRows)
          .template Store<kHeadDim>(row, place, total, merge.reference[group][row],
                                    merge.sum[group][row]);
    }
  }
  __syncthreads();
}

// Finishes row `row` from the parts of blocks first_block .. last_block. All threads; ends with a
// barrier.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void MergeBlocks(const AttendParameters& p, uint32_t row,
                                            uint32_t first_block, uint32_t last_block,
                                            MergeMemory<kRows>& merge) {
  constexpr uint32_t kFours = kHeadDim / 4;
  constexpr uint32_t kAtOnce = 16;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t count = last_block - first_block + 1;
  const auto part = [&](uint32_t i) {
    return RowPart<kHeadDim, kRows>(p.parts, first_block + i, i > 0);
  };
  const RowView view = p.View(row, kRows);
  // Outputs are on their way while the factors are computed.
  const int my_row = threadIdx.x / kFours;
  const int my_place = 4 * (threadIdx.x % kFours);
  float4 outputs[kAtOnce];
#pragma unroll
  for (uint32_t i = 0; i < kAtOnce; ++i) {
    if (i < count && my_row < kRows) outputs[i] = part(i).outputs(my_row, my_place);
  }
  for (int at = threadIdx.x / 32; at < kRows; at += blockDim.x / 32) {
    float reference = kNoReference;
    float sum = 0;
    // A lane's states first, then those of all lanes.
    for (uint32_t i = lane; i < count; i += 32) {
      const float other = part(i).reference(at);
      const float larger = fmaxf(reference, other);
      sum = sum * ptx::Exp2(reference - larger) + part(i).sum(at) * ptx::Exp2(other - larger);
      reference = larger;
    }
    const StateFactor all = StateFactor::Of(reference, sum);
    for (uint32_t i = lane; i < count; i += 32)
      merge.factor[at][i] = ptx::Exp2(part(i).reference(at) - all.reference);
    if (lane == 0) {
      merge.reference[0][at] = all.reference;
      merge.sum[0][at] = all.sum;
    }
  }
  __syncthreads();
  for (uint32_t index = threadIdx.x; index < kRows * kFours; index += blockDim.x) {
    const int at = index / kFours;
    const int place = 4 * (index % kFours);
    float4 total = {0, 0, 0, 0};
    uint32_t i = 0;
    if (index == threadIdx.x) {
#pragma unroll
      for (uint32_t known = 0; known < kAtOnce; ++known) {
        if (known < count) total = AddScaled(total, merge.factor[at][known], outputs[known]);
      }
      i = kAtOnce;
    }
#pragma unroll 4
    for (; i < count; ++i)
      total = AddScaled(total, merge.factor[at][i], part(i).outputs(at, place));
    view.Store<kHeadDim>(at, place, total, merge.reference[0][at], merge.sum[0][at]);
  }
  __syncthreads();
}

// All threads.
template <int kHeadDim, int kTiles>
__device__ void MergeRows(const AttendParameters& p, const PlanGrid& grid, const PlanMemory& plan,
                          const WarpMemoryLayout<kHeadDim, kTiles>& memory, std::byte* warps,
                          MergeMemory<4 * kTiles>& merge) {
  const PlanCut begin = plan.cuts[0];
  const PlanCut end = plan.cuts[grid.warps_per_cta];
  MergeWarps<kHeadDim, kTiles>(p, grid, begin, end, memory, warps, merge);
  // The rows that the range begins and ends in, if other blocks have a share in them; a range
  // inside one row has one.
  const bool shares[2] = {begin.unit > 0,
                          end.unit > 0 && (begin.unit == 0 || end.row != begin.row)};
  if (!shares[0] && !shares[1]) return;
  if (threadIdx.x < 2 && shares[threadIdx.x]) {
    // Cumulative over the barrier before: what all threads have stored is visible first.
    __threadfence();
    merge.arrived_before[threadIdx.x] =
        atomicAdd(&p.arrivals[threadIdx.x == 0 ? begin.row : end.row], 1u);
    __threadfence();
  }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const uint32_t row = i == 0 ? begin.row : end.row;
    if (!shares[i] || merge.arrived_before[i] != plan.last_block[i] - plan.first_block[i]) continue;
    MergeBlocks<kHeadDim, 4 * kTiles>(p, row, plan.first_block[i], plan.last_block[i], merge);
    if (threadIdx.x == 0) p.arrivals[row] = 0;
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_MERGE_CUH_
