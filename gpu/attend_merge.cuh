// From partial states of rows to outputs: first those of the block's warps, then, by the block that
// arrives last at a row, those of its blocks. A warp merges a query row at a time, in the order of
// the states, so that a batch repeats its bits.
#ifndef KVDEPOT_GPU_ATTEND_MERGE_CUH_
#define KVDEPOT_GPU_ATTEND_MERGE_CUH_

#include <cstdint>

#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Of each warp its first row and a later one, of which other warps have a share too.
inline constexpr uint32_t kEntries = 2 * kWarpsMax;

// A row whose states are merged: state 0 at `first`, states 1, 2, ... from `rest` on.
struct MergeJob {
  uint32_t row;
  uint32_t count;
  uint32_t mask;       // of every 32 states those that are meant
  uint32_t stride;     // floats
  const float* first;  // null: the states are the entries'
  const float* rest;
  float* part;  // where the union goes; null: it is the result
};

struct MergeMemory {
  uint32_t entry_row[kEntries];  // kNoRow: none
  const float* entry_state[kEntries];
  // Of the row that the block's range begins in, and of that it ends in, if others have a share:
  uint32_t first_block[2];
  uint32_t last_block[2];
  uint32_t job_count;
  MergeJob jobs[kEntries];
};

// What block `block` leaves of a row: of the row that its range begins in, if that began before, or
// of the one that it ends in.
template <int kHeadDim>
__device__ __forceinline__ float* RowPart(const AttendParameters& p, uint32_t rows, uint32_t block,
                                          bool from_before) {
  return p.parts + (2 * block + (from_before ? 0 : 1)) * RowState<kHeadDim>::Floats(rows);
}

// A query row's state, or the union of several: in lane l places 4 l + 128 f.
template <int kHeadDim>
struct MergedRow {
  static constexpr int kFours = (kHeadDim + 127) / 128;
  float reference = kNoReference;
  float sum = 0;
  float4 outputs[kFours] = {};

  static __device__ __forceinline__ MergedRow Of(const RowState<kHeadDim>& state, int row,
                                                 uint32_t lane) {
    MergedRow merged;
    merged.reference = state.reference(row);
    merged.sum = state.sum(row);
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      const int place = 4 * lane + 128 * f;
      if (place < kHeadDim) merged.outputs[f] = state.outputs(row, place);
    }
    return merged;
  }

  // Of the states that are meant.
  static __device__ __forceinline__ MergedRow Of(const MergeMemory& merge, const MergeJob& job,
                                                 int row, uint32_t lane) {
    const auto state = [&](uint32_t i) {
      const float* const base = job.first == nullptr ? merge.entry_state[i]
                                : i == 0             ? job.first
                                                     : job.rest + (i - 1) * job.stride;
      return base + row * kRowStride<kHeadDim>;
    };
    // Loads under way together; the first are before it is known what they count.
    constexpr int kAtOnce = 20 / kFours;
    MergedRow merged;
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
            outputs[i][f] = ptx::LoadOthers4(state(first + index[i]) + place);
        }
      }
    };
    const auto those_of = [&](uint32_t first) {
      return job.mask & (job.count - first < 32 ? (1u << (job.count - first)) - 1 : kAllLanes);
    };
    const auto holds = [&](uint32_t first) { return (those_of(first) >> lane & 1u) != 0; };
    const auto numbers = [&](uint32_t first) {
      return holds(first) ? ptx::LoadOthers2(state(first + lane) + kHeadDim)
                          : float2{kNoReference, 0};
    };

    uint32_t left = those_of(0);
    float2 own = numbers(0);
    load(0, left);
    merged.reference = own.x;
#pragma unroll 1
    for (uint32_t first = 32; first < job.count; first += 32)
      merged.reference = fmaxf(merged.reference, numbers(first).x);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2)
      merged.reference =
          fmaxf(merged.reference, __shfl_xor_sync(kAllLanes, merged.reference, distance));
#pragma unroll 1
    for (uint32_t first = 0;;) {
      const float factor = ptx::Exp2(own.x - merged.reference);
      merged.sum = fmaf(factor, own.y, merged.sum);
#pragma unroll 1
      while (true) {
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float of_state = __shfl_sync(kAllLanes, factor, index[i]);
#pragma unroll
          for (int f = 0; f < kFours; ++f) {
            merged.outputs[f].x = fmaf(of_state, outputs[i][f].x, merged.outputs[f].x);
            merged.outputs[f].y = fmaf(of_state, outputs[i][f].y, merged.outputs[f].y);
            merged.outputs[f].z = fmaf(of_state, outputs[i][f].z, merged.outputs[f].z);
            merged.outputs[f].w = fmaf(of_state, outputs[i][f].w, merged.outputs[f].w);
          }
        }
        if (left == 0) break;
        load(first, left);
      }
      first += 32;
      if (first >= job.count) break;
      left = those_of(first);
      own = numbers(first);
      load(first, left);
    }
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2)
      merged.sum += __shfl_xor_sync(kAllLanes, merged.sum, distance);
    return merged;
  }

  // As a state.
  __device__ __forceinline__ void StorePart(const RowState<kHeadDim>& to, int row,
                                            uint32_t lane) const {
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      const int place = 4 * lane + 128 * f;
      if (place < kHeadDim) *reinterpret_cast<float4*>(&to.output(row, place)) = outputs[f];
    }
    if (lane == 0) {
      to.reference(row) = reference;
      to.sum(row) = sum;
    }
  }

  // As the row's output and log-sum-exp.
  __device__ __forceinline__ void StoreResult(const RowView& view, int row, uint32_t lane) const {
    if (view.is_padding(row)) return;
    const size_t at = view.Index(row);
    const float factor = sum > 0 ? __fdividef(1.0f, sum) : 0.0f;
    float* const to = view.cell->output + at * kHeadDim;
    const uint8_t* const order = view.v_order();
#pragma unroll
    for (int f = 0; f < kFours; ++f) {
      const int place = 4 * lane + 128 * f;
      if (place >= kHeadDim) break;
      const float4 values = {outputs[f].x * factor, outputs[f].y * factor, outputs[f].z * factor,
                             outputs[f].w * factor};
      if (order != nullptr) {
        const uchar4 channels = *reinterpret_cast<const uchar4*>(order + place);
        to[channels.x] = values.x;
        to[channels.y] = values.y;
        to[channels.z] = values.z;
        to[channels.w] = values.w;
      } else {
        *reinterpret_cast<float4*>(to + place) = values;
      }
    }
    if (lane == 0)
      view.cell->log_sum_exp[at] = sum > 0 ? (reference + __log2f(sum)) * kLn2 : -INFINITY;
  }
};

// The rows of the block's entries: those of this block alone are finished, the others' parts stored
// for whoever arrives last. One warp.
template <int kHeadDim>
__device__ __forceinline__ void FillWarpJobs(const AttendParameters& p, const PlanCuts& cuts,
                                             uint32_t rows, MergeMemory& merge) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t row = lane < blockDim.x / 16 ? merge.entry_row[lane] : kNoRow;
  const uint32_t same = __match_any_sync(kAllLanes, row);
  const bool leads = row != kNoRow && (same & ((1u << lane) - 1)) == 0;
  const uint32_t leaders = __ballot_sync(kAllLanes, leads);
  if (lane == 0) merge.job_count = __popc(leaders);
  if (!leads) return;
  const bool from_before = cuts.block_begin.row == row && cuts.block_begin.unit > 0;
  const bool to_after = cuts.block_end.row == row && cuts.block_end.unit > 0;
  MergeJob job = {};
  job.row = row;
  job.count = kEntries;
  job.mask = same;
  if (from_before || to_after) job.part = RowPart<kHeadDim>(p, rows, blockIdx.x, from_before);
  merge.jobs[__popc(leaders & ((1u << lane) - 1))] = job;
}

// Arrives at the row that the block's range begins in (i = 0) or ends in (1); a job for the block
// that comes last. One thread, after all of the block's parts were stored.
template <int kHeadDim>
__device__ __forceinline__ void Arrive(const AttendParameters& p, uint32_t row, int i,
                                       uint32_t rows, MergeMemory& merge) {
  const uint32_t first = merge.first_block[i];
  const uint32_t others = merge.last_block[i] - first;
  MergeJob job = {};
  if (ptx::AddAcquireRelease(&p.arrivals[row], 1u) == others) {
    p.arrivals[row] = 0;
    job.row = row;
    job.count = others + 1;
    job.mask = kAllLanes;
    job.stride = 2 * RowState<kHeadDim>::Floats(rows);
    job.first = RowPart<kHeadDim>(p, rows, first, false);
    job.rest = RowPart<kHeadDim>(p, rows, first + 1, true);
  }
  merge.jobs[i] = job;
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
template <int kHeadDim, int kRows>
__device__ __forceinline__ void MergeRows(const AttendParameters& p, const PlanCuts& cuts,
                                          MergeMemory& merge) {
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  // The rows that the range begins and ends in, if other blocks have a share in them; a range
  // inside one row has one.
  const PlanCut begin = cuts.block_begin;
  const PlanCut end = cuts.block_end;
  const bool shares[2] = {begin.unit > 0,
                          end.unit > 0 && (begin.unit == 0 || end.row != begin.row)};
  if (warp == 0) FillWarpJobs<kHeadDim>(p, cuts, kRows, merge);
  __syncthreads();
  // Twice through the same instructions, which are fetched by then.
#pragma unroll 1
  for (bool of_blocks = false;; of_blocks = true) {
#pragma unroll 1
    for (uint32_t pair = warp; pair < merge.job_count * kRows; pair += blockDim.x / 32) {
      const MergeJob job = merge.jobs[pair / kRows];
      const int row = pair % kRows;
      if (job.count == 0) continue;
      const auto merged = MergedRow<kHeadDim>::Of(merge, job, row, lane);
      if (job.part != nullptr) {
        merged.StorePart(RowState<kHeadDim>{job.part}, row, lane);
      } else {
        merged.StoreResult(p.View(job.row, kRows), row, lane);
      }
    }
    if (of_blocks || (!shares[0] && !shares[1])) return;
    __syncthreads();
    if (threadIdx.x < 2) {
      if (shares[threadIdx.x]) {
        Arrive<kHeadDim>(p, threadIdx.x == 0 ? begin.row : end.row, threadIdx.x, kRows, merge);
      } else {
        merge.jobs[threadIdx.x].count = 0;
      }
      merge.job_count = 2;
    }
    __syncthreads();
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_MERGE_CUH_
