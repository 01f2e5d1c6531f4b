// From partial states of rows to outputs: first those of a block's warps are merged, then, by one
// warp of the launch for each query row, those of the blocks. A warp merges a query row at a time,
// in the order of the states, so that a batch repeats its bits.
#ifndef KVDEPOT_GPU_ATTEND_MERGE_CUH_
#define KVDEPOT_GPU_ATTEND_MERGE_CUH_

#include <cstdint>

#include "gpu/attend_parameters.cuh"
#include "gpu/attend_parts.cuh"
#include "gpu/attend_plan.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Of each warp its first row and a later one, of which other warps have a share too.
inline constexpr uint32_t kEntries = 2 * kWarpsMax;

// A row of which several warps have states, or this block and others have shares.
struct MergeJob {
  uint32_t row;
  uint32_t entries;  // bit i: entry i
  bool is_part;      // of a row that other blocks have shares in
  bool from_before;  // which began in an earlier block
};

// A row that this block and others have shares in.
struct SharedRow {
  uint32_t row;  // kNoRow: none
  uint32_t first_block;
  uint32_t last_block;
};

struct MergeMemory {
  const float* entry_state[kEntries];
  uint32_t job_count;
  MergeJob jobs[kEntries];
  SharedRow shared[2];  // that the block's range begins in, and that it ends in
};

// Where the output and log-sum-exp of a query row go.
class ResultRow {
 public:
  // `sum`: of weights.
  __device__ ResultRow(const RowView& view, int row, int head_dim, float sum)
      : order_(view.v_order()) {
    factor_ = sum > 0 ? __fdividef(1.0f, sum) : 0.0f;
    const size_t at = view.Index(row);
    output_ = view.cell->output + at * head_dim;
    log_sum_exp_ = view.cell->log_sum_exp + at;
  }
  // Of places `place`, which is even, and place + 1: sums of weighted values.
  __device__ __forceinline__ void Store(int place, float first, float second) const {
    const float2 values = {first * factor_, second * factor_};
    if (order_ != nullptr) {
      const uchar2 channels = *reinterpret_cast<const uchar2*>(order_ + place);
      output_[channels.x] = values.x;
      output_[channels.y] = values.y;
    } else {
      *reinterpret_cast<float2*>(output_ + place) = values;
    }
  }
  __device__ __forceinline__ void StoreLogSumExp(float reference, float sum) const {
    *log_sum_exp_ = sum > 0 ? (reference + __log2f(sum)) * kLn2 : -INFINITY;
  }

 private:
  const uint8_t* order_;  // channels of places; null: places are channels
  float* output_;
  float* log_sum_exp_;
  float factor_;
};

// A query row's state, or the union of several: in lane l places 4 l + 128 f.
template <int kHeadDim>
struct MergedRow {
  static constexpr int kFours = (kHeadDim + 127) / 128;
  float reference = kNoReference;
  float sum = 0;
  float4 outputs[kFours] = {};

  // Lanes for which there is no place read those of others.
  static __device__ __forceinline__ uint32_t PlaceOf(int f, uint32_t lane) {
    return (4 * lane + 128 * f) % kHeadDim;
  }
  static __device__ __forceinline__ bool HasPlace(int f, uint32_t lane) {
    return 4 * lane + 128 * f < kHeadDim;
  }

  __device__ __forceinline__ void Add(const float4 (&values)[kFours], float factor) {
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      outputs[f].x = fmaf(factor, values[f].x, outputs[f].x);
      outputs[f].y = fmaf(factor, values[f].y, outputs[f].y);
      outputs[f].z = fmaf(factor, values[f].z, outputs[f].z);
      outputs[f].w = fmaf(factor, values[f].w, outputs[f].w);
    }
  }

  static __device__ __forceinline__ void Load(const RowState<kHeadDim>& state, int row,
                                              uint32_t lane, float4 (&values)[kFours]) {
#pragma unroll
    for (int f = 0; f < kFours; ++f) values[f] = state.outputs(row, PlaceOf(f, lane));
  }

  static __device__ __forceinline__ MergedRow Of(const RowState<kHeadDim>& state, int row,
                                                 uint32_t lane) {
    MergedRow merged;
    merged.reference = state.reference(row);
    merged.sum = state.sum(row);
    Load(state, row, lane, merged.outputs);
    return merged;
  }

  // Of the job's entries.
  static __device__ __forceinline__ MergedRow Of(const MergeMemory& merge, uint32_t entries,
                                                 int row, uint32_t lane) {
    const bool holds = lane < kEntries && (entries >> lane & 1u) != 0;
    const RowState<kHeadDim> own{const_cast<float*>(merge.entry_state[holds ? lane : 0])};
    const float2 numbers = holds ? own.numbers(row) : float2{kNoReference, 0};
    MergedRow merged;
    merged.reference = MaxOfWarp(numbers.x);
    const float factor = ptx::Exp2(numbers.x - merged.reference);
    merged.sum = SumOfWarp(factor * numbers.y);
#pragma unroll 2
    for (uint32_t left = entries; left != 0; left &= left - 1) {
      const int entry = __ffs(left) - 1;
      float4 values[kFours];
      Load(RowState<kHeadDim>{const_cast<float*>(merge.entry_state[entry])}, row, lane, values);
      merged.Add(values, __shfl_sync(kAllLanes, factor, entry));
    }
    return merged;
  }

  // To whoever merges the row's parts, with the numbers in every slice.
  __device__ __forceinline__ void Send(const Parts<kHeadDim>& parts, bool from_before,
                                       uint32_t rows, uint32_t row, uint32_t lane) const {
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      if (!HasPlace(f, lane)) continue;
      const uint32_t place = PlaceOf(f, lane);
      uint64_t* const slice = parts.Of(blockIdx.x, from_before, rows, row, place / kSlicePlaces);
      uint64_t* const to = slice + place % kSlicePlaces;
      TwoWords::Send(to, outputs[f].x, outputs[f].y);
      TwoWords::Send(to + 2, outputs[f].z, outputs[f].w);
      if (place % kSlicePlaces == 0) TwoWords::Send(slice + kSlicePlaces, reference, sum);
    }
  }

  __device__ __forceinline__ void StoreResult(const RowView& view, int row, uint32_t lane) const {
    if (view.is_padding(row)) return;
    const ResultRow result(view, row, kHeadDim, sum);
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      if (!HasPlace(f, lane)) break;
      const int place = PlaceOf(f, lane);
      result.Store(place, outputs[f].x, outputs[f].y);
      result.Store(place + 2, outputs[f].z, outputs[f].w);
    }
    if (lane == 0) result.StoreLogSumExp(reference, sum);
  }
};

// Waits for the parts of a slice of query row `row` in the blocks that share its row, and stores
// the result. One warp: lanes 16 h + i hold places 2 i and 2 i + 1 of the parts of parity h.
template <int kHeadDim>
__device__ __forceinline__ void MergeSlice(const Parts<kHeadDim>& parts, const RowView& view,
                                           const SharedRow& shared, uint32_t rows, uint32_t row,
                                           uint32_t slice, uint32_t lane) {
  constexpr uint32_t kAtOnce = 20;
  const uint32_t count = shared.last_block - shared.first_block + 1;
  const uint32_t place = 2 * (lane % 16);
  const auto part = [&](uint32_t i) {
    return parts.Of(shared.first_block + i, i > 0, rows, row, slice);
  };
  float highest = kNoReference;
  float sum = 0;
  float2 outputs = {0, 0};
#pragma unroll 1
  for (uint32_t first = 0; first < count; first += kAtOnce) {
    const bool holds = lane < kAtOnce && first + lane < count;
    // Numbers are sent after outputs, and so rarely come before them.
    TwoWords numbers;
    do {
      if (holds) numbers.Load(part(first + lane) + kSlicePlaces);
    } while (!__all_sync(kAllLanes, !holds || numbers.arrived()));
    TwoWords values[kAtOnce / 2];
    const auto for_values = [&](const auto& call) {
#pragma unroll
      for (uint32_t i = 0; i < kAtOnce / 2; ++i) {
        const uint32_t at = first + 2 * i + lane / 16;
        if (at < count) call(values[i], part(at) + place);
      }
    };
    bool arrived;
    do {
      for_values([](TwoWords& words, const uint64_t* at) { words.Load(at); });
      arrived = true;
      for_values(
          [&](const TwoWords& words, const uint64_t*) { arrived = arrived && words.arrived(); });
    } while (!__all_sync(kAllLanes, arrived));
    if (holds) TwoWords::Clear(part(first + lane) + kSlicePlaces);
    for_values([](const TwoWords&, uint64_t* at) { TwoWords::Clear(at); });

    const float reference = holds ? numbers.first() : kNoReference;
    const float before = highest;
    highest = fmaxf(highest, MaxOfWarp(reference));
    const float old_factor = ptx::Exp2(before - highest);
    const float factor = ptx::Exp2(reference - highest);
    sum = sum * old_factor + SumOfWarp(holds ? factor * numbers.second() : 0.0f);
    outputs = {outputs.x * old_factor, outputs.y * old_factor};
#pragma unroll
    for (uint32_t i = 0; i < kAtOnce / 2; ++i) {
      const float of_part = __shfl_sync(kAllLanes, factor, 2 * i + lane / 16);
      outputs.x = fmaf(of_part, values[i].first(), outputs.x);
      outputs.y = fmaf(of_part, values[i].second(), outputs.y);
    }
  }
  outputs.x += __shfl_xor_sync(kAllLanes, outputs.x, 16);
  outputs.y += __shfl_xor_sync(kAllLanes, outputs.y, 16);
  if (view.is_padding(row)) return;
  const ResultRow result(view, row, kHeadDim, sum);
  if (lane < 16) result.Store(slice * kSlicePlaces + place, outputs.x, outputs.y);
  if (lane == 0 && slice == 0) result.StoreLogSumExp(highest, sum);
}

// What is to be merged once the ranges are through, which the plan alone decides. One warp.
template <int kHeadDim>
__device__ __forceinline__ void FillMergeMemory(const AttendParameters& p, const PlanRows& rows,
                                                const PlanGrid& grid, const PlanCuts& cuts,
                                                MergeMemory& merge) {
  const uint32_t lane = threadIdx.x % 32;
  // Lane i: the row of entry i.
  const uint32_t warp = min(lane / 2, grid.warps_per_cta - 1);
  const bool is_later = lane % 2 == 1;
  const PlanCut begin = cuts.Of(warp);
  const PlanCut end = cuts.Of(warp + 1);
  const uint32_t rows_ending_before = end.row + (end.unit > 0 ? 1 : 0);
  const bool has_two = rows_ending_before > begin.row + 1;
  uint32_t row = kNoRow;
  if (lane / 2 < grid.warps_per_cta) {
    if (is_later && end.unit > 0) row = end.row;
    if (is_later && !has_two && begin.unit > 0 && !(begin == end)) row = begin.row;
    if (!is_later && has_two && begin.unit > 0) row = begin.row;
    if (begin == end) row = kNoRow;
  }
  const uint32_t same = __match_any_sync(kAllLanes, row);
  const bool leads = row != kNoRow && (same & ((1u << lane) - 1)) == 0;
  const uint32_t leaders = __ballot_sync(kAllLanes, leads);
  const PlanCut block_begin = cuts.Of(0);
  const PlanCut block_end = cuts.Of(grid.warps_per_cta);
  if (lane == 0) merge.job_count = __popc(leaders);
  if (leads) {
    const bool from_before = block_begin.row == row && block_begin.unit > 0;
    const bool to_after = block_end.row == row && block_end.unit > 0;
    merge.jobs[__popc(leaders & ((1u << lane) - 1))] = {row, same, from_before || to_after,
                                                        from_before};
  }
  // A range inside one row has one shared row.
  const uint32_t begin_row = block_begin.unit > 0 ? block_begin.row : kNoRow;
  const uint32_t end_row =
      block_end.unit > 0 && block_end.row != begin_row ? block_end.row : kNoRow;
  const uint32_t which = lane / 16;
  const uint32_t shared_row = which == 0 ? begin_row : end_row;
  const bool is_shared = shared_row != kNoRow;
  const uint32_t block =
      BlockOf<kHeadDim>(p, rows, grid, is_shared ? shared_row : 0, lane / 8 % 2 == 1);
  SharedRow& shared = merge.shared[which];
  if (lane % 16 == 0) shared.row = shared_row;
  if (lane % 16 == 0) shared.first_block = block;
  if (lane % 16 == 8) shared.last_block = block;
}

// All threads, once every warp's states are there and `merge` is filled.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void MergeRows(const AttendParameters& p, const MergeMemory& merge) {
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  const Parts<kHeadDim> parts{p.parts};
#pragma unroll 1
  for (uint32_t pair = warp; pair < merge.job_count * kRows; pair += blockDim.x / 32) {
    const MergeJob job = merge.jobs[pair / kRows];
    const int row = pair % kRows;
    const auto merged = MergedRow<kHeadDim>::Of(merge, job.entries, row, lane);
    if (job.is_part) {
      merged.Send(parts, job.from_before, kRows, row, lane);
    } else {
      merged.StoreResult(p.View(job.row, kRows), row, lane);
    }
  }
  // Everything that others wait for was sent: now others may be waited for.
  constexpr uint32_t kSlices = Parts<kHeadDim>::kSlices;
  const uint32_t warps = blockDim.x / 32;
#pragma unroll 1
  for (uint32_t which = 0; which < 2; ++which) {
    const SharedRow shared = merge.shared[which];
    if (shared.row == kNoRow) continue;
    // A row's slices go to its blocks in turn, and in a block to warps; another warp's turn is
    // first in the second row.
    const uint32_t count = shared.last_block - shared.first_block + 1;
    const uint32_t turn = which == 0 ? warp : warps - 1 - warp;
#pragma unroll 1
    for (uint32_t slice = blockIdx.x - shared.first_block + turn * count; slice < kRows * kSlices;
         slice += warps * count) {
      MergeSlice(parts, p.View(shared.row, kRows), shared, kRows, slice / kSlices, slice % kSlices,
                 lane);
    }
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_MERGE_CUH_
