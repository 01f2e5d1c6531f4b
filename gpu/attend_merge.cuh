// From partial states of rows to outputs. A warp merges a query row at a time, in the order of the
// states, so that a batch repeats its bits.
#ifndef KVDEPOT_GPU_ATTEND_MERGE_CUH_
#define KVDEPOT_GPU_ATTEND_MERGE_CUH_

#include <cstdint>

#include "gpu/attend_launch.h"
#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Of each warp its first row and a later one, of which other warps have a share too.
inline constexpr uint32_t kEntries = 2 * kWarpsMax;

struct MergeMemory {
  uint32_t entry_row[kEntries];  // kNoRow: none
  float* entry_state[kEntries];
  // Of the row that the block's range begins in, and of that it ends in, if others have a share:
  uint32_t first_block[2];
  uint32_t last_block[2];
  uint32_t arrived_before[2];  // blocks
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

// The union of several states of a query row: in lane l its places 4 l + 128 f.
template <int kHeadDim>
struct MergedRow {
  static constexpr int kFours = (kHeadDim + 127) / 128;
  float reference = kNoReference;
  float sum = 0;
  float4 outputs[kFours] = {};

  // Calls store(place, outputs, reference, sum) with what this lane holds.
  template <class Store>
  __device__ __forceinline__ void ForEach(uint32_t lane, const Store& store) const {
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      const int place = 4 * lane + 128 * f;
      if (place < kHeadDim) store(place, outputs[f], reference, sum);
    }
  }
};

// Merges query row `row` of the states state(i), i < `count`, of every 32 only those in `mask`.
// kAtOnce: loads under way together; the first are before it is known what they count.
template <int kHeadDim, int kAtOnce, class StateOf>
__device__ __forceinline__ MergedRow<kHeadDim> MergeStates(const StateOf& state, uint32_t count,
                                                           uint32_t mask, int row, uint32_t lane) {
  constexpr int kFours = MergedRow<kHeadDim>::kFours;
  MergedRow<kHeadDim> merged;
  uint32_t index[kAtOnce];
  float4 outputs[kAtOnce][kFours];
  const auto load = [&](uint32_t first, uint32_t& left) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      index[i] = left != 0 ? __ffs(left) - 1 : 32;
      left &= left - 1;
#pragma unroll
      for (int f = 0; f < kFours; ++f) {
        const int place = 4 * lane + 128 * f;
        outputs[i][f] = {0, 0, 0, 0};
        if (index[i] < 32 && place < kHeadDim)
          outputs[i][f] = state(first + index[i]).outputs(row, place);
      }
    }
  };
  const auto those_of = [&](uint32_t first) {
    return mask & (count - first < 32 ? (1u << (count - first)) - 1 : kAllLanes);
  };
  const auto holds = [&](uint32_t first) { return (those_of(first) >> lane & 1u) != 0; };

  uint32_t left = those_of(0);
  load(0, left);
  for (uint32_t first = 0; first < count; first += 32) {
    if (holds(first))
      merged.reference = fmaxf(merged.reference, state(first + lane).numbers(row).x);
  }
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    merged.reference =
        fmaxf(merged.reference, __shfl_xor_sync(kAllLanes, merged.reference, distance));
  for (uint32_t first = 0;;) {
    float factor = 0;
    if (holds(first)) {
      const float2 numbers = state(first + lane).numbers(row);
      factor = ptx::Exp2(numbers.x - merged.reference);
      merged.sum = fmaf(factor, numbers.y, merged.sum);
    }
    while (true) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float of_state = __shfl_sync(kAllLanes, factor, index[i]);
#pragma unroll
        for (int f = 0; f < kFours; ++f)
          merged.outputs[f] = AddScaled(merged.outputs[f], of_state, outputs[i][f]);
      }
      if (left == 0) break;
      load(first, left);
    }
    first += 32;
    if (first >= count) break;
    left = those_of(first);
    load(first, left);
  }
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    merged.sum += __shfl_xor_sync(kAllLanes, merged.sum, distance);
  return merged;
}

// Merges what the block's warps have left: rows of this block alone are finished, the others' parts
// stored for whoever arrives last.
template <int kHeadDim, int kTiles>
__device__ void MergeWarps(const AttendParameters& p, const PlanCuts& cuts,
                           const MergeMemory& merge) {
  constexpr int kRows = 4 * kTiles;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  // Entries by row; a row's first entry stands for it.
  const uint32_t my_row = lane < blockDim.x / 16 ? merge.entry_row[lane] : kNoRow;
  const uint32_t same = __match_any_sync(kAllLanes, my_row);
  uint32_t leaders = __ballot_sync(kAllLanes, my_row != kNoRow && (same & ((1u << lane) - 1)) == 0);
  const auto state = [&](uint32_t entry) {
    return SharedState<kHeadDim>{merge.entry_state[entry]};
  };
  uint32_t pair = 0;
  for (; leaders != 0; leaders &= leaders - 1) {
    const uint32_t leader = __ffs(leaders) - 1;
    const uint32_t row = __shfl_sync(kAllLanes, my_row, leader);
    const uint32_t entries = __shfl_sync(kAllLanes, same, leader);
    const bool from_before = cuts.block_begin.row == row && cuts.block_begin.unit > 0;
    const bool to_after = cuts.block_end.row == row && cuts.block_end.unit > 0;
    const RowView view = p.View(row, kRows);
    for (int at = 0; at < kRows; ++at, ++pair) {
      if (pair % (blockDim.x / 32) != warp) continue;
      const MergedRow<kHeadDim> merged =
          MergeStates<kHeadDim, 4>(state, kEntries, entries, at, lane);
      merged.ForEach(lane, [&](int place, const float4& outputs, float reference, float sum) {
        if (from_before || to_after) {
          RowPart<kHeadDim, kRows>(p.parts, blockIdx.x, from_before)
              .Store(at, place, outputs, reference, sum);
        } else {
          view.Store<kHeadDim>(at, place, outputs, reference, sum);
        }
      });
    }
  }
}

// Which blocks have a share in the rows that the block's range begins and ends in. One warp.
template <int kHeadDim>
__device__ void FillShares(const AttendParameters& p, const PlanRows& rows, const PlanGrid& grid,
                           const PlanCuts& cuts, MergeMemory& merge) {
  const uint32_t lane = threadIdx.x % 32;
  const bool at_end = lane >= 2;
  const bool last = lane % 2 == 1;
  const PlanCut cut = at_end ? cuts.block_end : cuts.block_begin;
  if (lane < 4 && cut.row < p.row_count && cut.unit > 0)
    (last ? merge.last_block : merge.first_block)[at_end] =
        BlockOf<kHeadDim>(p, rows, grid, cut.row, last);
}

// All threads, once every warp's states are there.
template <int kHeadDim, int kTiles>
__device__ void MergeRows(const AttendParameters& p, const PlanCuts& cuts, MergeMemory& merge) {
  constexpr int kRows = 4 * kTiles;
  constexpr int kPartsAtOnce = 20 * 128 / (kHeadDim < 128 ? 128 : kHeadDim);
  MergeWarps<kHeadDim, kTiles>(p, cuts, merge);
  const PlanCut begin = cuts.block_begin;
  const PlanCut end = cuts.block_end;
  // The rows that the range begins and ends in, if other blocks have a share in them; a range
  // inside one row has one.
  const bool shares[2] = {begin.unit > 0,
                          end.unit > 0 && (begin.unit == 0 || end.row != begin.row)};
  if (!shares[0] && !shares[1]) return;
  __syncthreads();
  if (threadIdx.x < 2 && shares[threadIdx.x]) {
    // Cumulative over the barriers: what all threads have stored is visible first.
    merge.arrived_before[threadIdx.x] =
        ptx::AddAcquireRelease(&p.arrivals[threadIdx.x == 0 ? begin.row : end.row], 1u);
  }
  __syncthreads();
  // Of the two rows those that this block came last to, a warp a query row.
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
  for (uint32_t pair = warp; pair < 2 * kRows; pair += blockDim.x / 32) {
    const int i = pair / kRows;
    const int at = pair % kRows;
    const uint32_t others = merge.last_block[i] - merge.first_block[i];
    if (!shares[i] || merge.arrived_before[i] != others) continue;
    const uint32_t row = i == 0 ? begin.row : end.row;
    const uint32_t first_block = merge.first_block[i];
    const auto part = [&](uint32_t k) {
      return RowPart<kHeadDim, kRows>(p.parts, first_block + k, k > 0);
    };
    const MergedRow<kHeadDim> merged =
        MergeStates<kHeadDim, kPartsAtOnce>(part, others + 1, kAllLanes, at, lane);
    const RowView view = p.View(row, kRows);
    merged.ForEach(lane, [&](int place, const float4& outputs, float reference, float sum) {
      view.Store<kHeadDim>(at, place, outputs, reference, sum);
    });
    if (at == 0 && lane == 0) p.arrivals[row] = 0;
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_MERGE_CUH_
