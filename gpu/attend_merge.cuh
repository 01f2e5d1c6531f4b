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
  uint32_t row[kEntries];  // kNoRow: none
  uint32_t arrived_before;
  // [query row][state]: what a state counts in the union; of the union, its reference and sum.
  float factor[kRows][kLaunchBlocksMax];
  float reference[kRows];
  float sum[kRows];
};

// Output, reference and sum of those of `count` states for which `holds(i)`, in order: fills
// `merge`, then hands four neighbouring places at a time to `store(query row, first place,
// values)`. All threads; ends with a barrier. `state(i)` yields state i.
template <int kHeadDim, int kRows, class Holds, class State, class Store>
__device__ __forceinline__ void MergeStates(uint32_t count, const Holds& holds, const State& state,
                                            MergeMemory<kRows>& merge, const Store& store) {
  const uint32_t warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  for (uint32_t row = warp; row < kRows; row += blockDim.x / 32) {
    float reference = kNoReference;
    for (uint32_t i = lane; i < count; i += 32) {
      if (holds(i)) reference = fmaxf(reference, state(i).reference(row));
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2)
      reference = fmaxf(reference, __shfl_xor_sync(kAllLanes, reference, mask));
    float sum = 0;
    for (uint32_t i = lane; i < count; i += 32) {
      if (!holds(i)) continue;
      const float factor = ptx::Exp2(state(i).reference(row) - reference);
      merge.factor[row][i] = factor;
      sum += factor * state(i).sum(row);
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    if (lane == 0) {
      merge.reference[row] = reference;
      merge.sum[row] = sum;
    }
  }
  __syncthreads();
  constexpr int kFours = kHeadDim / 4;
  for (uint32_t index = threadIdx.x; index < kRows * kFours; index += blockDim.x) {
    const int row = index / kFours;
    const int place = 4 * (index % kFours);
    float4 total = {0, 0, 0, 0};
#pragma unroll 8
    for (uint32_t i = 0; i < count; ++i) {
      if (!holds(i)) continue;
      const float4 value = state(i).outputs(row, place);
      const float factor = merge.factor[row][i];
      total.x = fmaf(factor, value.x, total.x);
      total.y = fmaf(factor, value.y, total.y);
      total.z = fmaf(factor, value.z, total.z);
      total.w = fmaf(factor, value.w, total.w);
    }
    store(row, place, total);
  }
  __syncthreads();
}

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

// Merges the states that the block's warps have left, and with those of other blocks where this
// block arrives last. All threads.
template <int kHeadDim, int kTiles>
__device__ void MergeBlock(const AttendParameters& p, const PlanGrid& grid, const PlanMemory& plan,
                           const WarpMemoryLayout<kHeadDim, kTiles>& memory, std::byte* warps,
                           MergeMemory<4 * kTiles>& merge) {
  constexpr int kRows = 4 * kTiles;
  using Part = GlobalState<kHeadDim, kRows>;
  const PlanCut begin = plan.cuts[0];
  const PlanCut end = plan.cuts[grid.warps_per_cta];
  const uint32_t entries = 2 * grid.warps_per_cta;
  for (uint32_t entry = 0; entry < entries; ++entry) {
    const uint32_t row = merge.row[entry];
    if (row == kNoRow) continue;
    // The row's entries follow each other, but for unused ones between them.
    const uint32_t first_entry = entry;
    while (entry + 1 < entries && (merge.row[entry + 1] == row || merge.row[entry + 1] == kNoRow))
      ++entry;
    const uint32_t count = entry + 1 - first_entry;
    const auto holds = [&](uint32_t i) { return merge.row[first_entry + i] == row; };
    const auto state = [&](uint32_t i) {
      return SharedState<kHeadDim>{
          memory.state(warps, (first_entry + i) / 2, (first_entry + i) % 2)};
    };
    const RowView view = p.View(row, kRows);
    const auto finish = [&](int query_row, int place, const float4& values) {
      view.Store<kHeadDim>(query_row, place, values, merge.reference[query_row],
                           merge.sum[query_row]);
    };
    const bool from_before = begin.row == row && begin.unit > 0;
    const bool to_after = end.row == row && end.unit > 0;
    if (!from_before && !to_after) {
      MergeStates<kHeadDim, kRows>(count, holds, state, merge, finish);
      continue;
    }
    const auto part = [&](uint32_t block, bool first) {
      return Part{p.parts + (2 * block + (first ? 0 : 1)) * Part::kFloats};
    };
    const Part mine = part(blockIdx.x, from_before);
    MergeStates<kHeadDim, kRows>(
        count, holds, state, merge, [&](int query_row, int place, const float4& values) {
          mine.Store(query_row, place, values, merge.reference[query_row], merge.sum[query_row]);
        });
    const int known = from_before ? 0 : 1;
    const uint32_t first_block = plan.first_block[known];
    const uint32_t others = plan.last_block[known] - first_block;
    if (threadIdx.x == 0) {
      // Cumulative over the barrier before: what all threads stored is visible first.
      __threadfence();
      merge.arrived_before = atomicAdd(&p.arrivals[row], 1u);
      __threadfence();
    }
    __syncthreads();
    if (merge.arrived_before != others) continue;
    MergeStates<kHeadDim, kRows>(
        others + 1, [](uint32_t) { return true; },
        [&](uint32_t i) { return part(first_block + i, i > 0); }, merge, finish);
    if (threadIdx.x == 0) p.arrivals[row] = 0;
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_MERGE_CUH_
