// The plan (attend_plan.h) as every block of a launch computes it for itself.
#ifndef KVDEPOT_GPU_ATTEND_PLAN_CUH_
#define KVDEPOT_GPU_ATTEND_PLAN_CUH_

#include <cstdint>

#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.h"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

inline constexpr uint32_t kNoRow = 0xFFFFFFFFu;
// From so many warps' shares on a row has its warps for itself: rounding costs a sixteenth of a
// share at most, and nobody comes to a second row.
inline constexpr float kWideRowShares = 8.0f;

// Runs of a list in a line of the device's cache.
inline constexpr uint32_t kRunsOfLine = 128 / sizeof(CodedRun);

// Every row of the launch, in shared memory. One number each: more would cost large batches a warp.
// What else the plan wants of a row is read again.
struct PlanRows {
  uint32_t* begin;  // [row_count + 1], costs of all rows before

  static __host__ __device__ constexpr uint32_t Bytes(uint32_t row_count) {
    return (4 * (row_count + 1) + 15) / 16 * 16;
  }
  __device__ explicit PlanRows(std::byte* memory) : begin(reinterpret_cast<uint32_t*>(memory)) {}
};

struct PlanMemory {
  uint32_t warp_sums[kWarpsMax];
  uint32_t warp_largest[kWarpsMax];
  uint32_t warps_through;  // with their ranges, of the block
};

// Where the ranges of a block's warps begin, one a lane.
struct PlanCuts {
  PlanCut of_lane;

  // Of warp `warp` of the block, its number of warps for where the block ends. All lanes take part.
  __device__ __forceinline__ PlanCut Of(uint32_t warp) const {
    return {__shfl_sync(kAllLanes, of_lane.row, warp), __shfl_sync(kAllLanes, of_lane.unit, warp)};
  }
};

template <int kHeadDim>
__device__ uint32_t ExactTokenBytes(const AttendParameters& p) {
  return 2 * kHeadDim * (p.dtype == DType::kFp32 ? 4 : 2);
}

template <int kHeadDim>
__device__ __forceinline__ RowCosts CostsOfRow(const AttendParameters& p, uint32_t row) {
  const uint32_t head = p.Head(row);
  return CostsOf(p.cells[p.kv_heads.Of(head)], p.block_cost_bytes[head],
                 ExactTokenBytes<kHeadDim>(p));
}

// Fills `rows` and returns the largest unit's cost. All threads; ends with a barrier.
template <int kHeadDim>
__device__ __forceinline__ uint32_t FillPlanRows(const AttendParameters& p, const PlanRows& rows,
                                                 PlanMemory& plan) {
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t begin = min(threadIdx.x * p.rows_per_thread, p.row_count);
  const uint32_t end = min(begin + p.rows_per_thread, p.row_count);
  if (threadIdx.x == 0) plan.warps_through = 0;
  uint32_t sum = 0;
  uint32_t largest = 0;
#pragma unroll 1
  for (uint32_t row = begin; row < end; ++row) {
    const uint32_t head = p.Head(row);
    const AttendCell& cell = p.cells[p.kv_heads.Of(head)];
    // A part of the list of runs each, for all of them.
    if (kRunsOfLine * blockIdx.x < cell.coded_runs)
      ptx::PrefetchL2(cell.coded + kRunsOfLine * blockIdx.x);
    const RowCosts costs = CostsOfRow<kHeadDim>(p, row);
    rows.begin[row] = sum;
    sum += costs.total();
    largest = max(largest, costs.largest_unit());
  }
  uint32_t before = sum;
#pragma unroll
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (lane == 31) {
    plan.warp_sums[warp] = before;
    plan.warp_largest[warp] = largest;
  }
  __syncthreads();
  const bool is_warp = lane < blockDim.x / 32;
  before += __reduce_add_sync(kAllLanes, lane < warp ? plan.warp_sums[lane] : 0);
  largest = __reduce_max_sync(kAllLanes, is_warp ? plan.warp_largest[lane] : 0);
#pragma unroll 1
  for (uint32_t row = begin; row < end; ++row) rows.begin[row] += before - sum;
  if (threadIdx.x == blockDim.x - 1) rows.begin[p.row_count] = before;
  __syncthreads();
  return largest;
}

// Last row that begins at or before `offset`; rows without units are passed over.
__device__ inline uint32_t RowAt(const uint32_t* row_begin, uint32_t row_count, uint32_t offset) {
  uint32_t low = 0;
  uint32_t high = row_count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (row_begin[middle] <= offset) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Where the line of row `row` begins, counted in warps' shares of `share` costs. Between two rows
// of many shares, where a warp begins: those have no warp in common.
__device__ __forceinline__ float WarpAt(const PlanRows& rows, uint32_t row_count, uint32_t row,
                                        float share) {
  const float begin = __fdividef(static_cast<float>(rows.begin[row]), share);
  if (row == 0 || row == row_count) return rintf(begin);
  const float wide = __fmul_rn(kWideRowShares, share);
  const bool is_between_wide = static_cast<float>(rows.begin[row] - rows.begin[row - 1]) >= wide &&
                               static_cast<float>(rows.begin[row + 1] - rows.begin[row]) >= wide;
  return is_between_wide ? rintf(begin) : begin;
}

// Where warp `warp` begins. Quotients need not be exact, as all threads compute them alike.
template <int kHeadDim>
__device__ __forceinline__ PlanCut CutOf(const AttendParameters& p, const PlanRows& rows,
                                         const PlanGrid& grid, uint32_t warp) {
  if (warp >= grid.warps()) return {p.row_count, 0};
  const float share =
      __fdividef(static_cast<float>(rows.begin[p.row_count]), static_cast<float>(grid.warps()));
  const float at = static_cast<float>(warp);
  const uint32_t row = RowAt(rows.begin, p.row_count, static_cast<uint32_t>(__fmul_rn(share, at)));
  const RowCosts costs = CostsOfRow<kHeadDim>(p, row);
  const uint32_t row_cost = costs.total();
  const float begin = WarpAt(rows, p.row_count, row, share);
  const float end = WarpAt(rows, p.row_count, row + 1, share);
  const float part = __fdividef(__fsub_rn(at, begin), __fsub_rn(end, begin));
  // Where a warp begins with the row, all that come to it do so first.
  const uint32_t skipped = begin == rintf(begin) ? kRowCost : 0;
  const float offset =
      __fmul_rn(static_cast<float>(row_cost - skipped), fminf(fmaxf(part, 0.0f), 1.0f));
  const uint32_t unit = costs.NearestUnit(min(skipped + static_cast<uint32_t>(offset), row_cost));
  return unit < costs.units() ? PlanCut{row, unit} : PlanCut{row + 1, 0};
}

// Of the block's warps. The whole warp takes part.
template <int kHeadDim>
__device__ __forceinline__ PlanCuts CutsOf(const AttendParameters& p, const PlanRows& rows,
                                           const PlanGrid& grid) {
  const uint32_t warp = min(threadIdx.x % 32, grid.warps_per_cta);
  return {CutOf<kHeadDim>(p, rows, grid, blockIdx.x * grid.warps_per_cta + warp)};
}

// The block in whose range the first unit of `row` lies, or the last one. Every eight lanes may ask
// for another; the whole warp takes part.
template <int kHeadDim>
__device__ __forceinline__ uint32_t BlockOf(const AttendParameters& p, const PlanRows& rows,
                                            const PlanGrid& grid, uint32_t row, bool last) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t offset = rows.begin[last ? row + 1 : row];
  const uint32_t near =
      static_cast<uint32_t>(offset * __fdividef(static_cast<float>(grid.ctas),
                                                static_cast<float>(rows.begin[p.row_count])));
  // Cuts are rounded: it is one of a few, the last that begins at or before the unit.
  const uint32_t highest = min(near + 4, grid.ctas - 1);
  const uint32_t block = highest - min(lane % 8, highest);
  const PlanCut cut = CutOf<kHeadDim>(p, rows, grid, block * grid.warps_per_cta);
  const bool begins_before =
      block == 0 || cut.row < row || (cut.row == row && (last || cut.unit == 0));
  const uint32_t of_group = __ballot_sync(kAllLanes, begins_before) >> (lane & 24u) & 0xFFu;
  return highest - min(static_cast<uint32_t>(__ffs(of_group) - 1), highest);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_PLAN_CUH_
