// The plan (attend_plan.h) as every block of a launch computes it for itself.
#ifndef KVDEPOT_GPU_ATTEND_PLAN_CUH_
#define KVDEPOT_GPU_ATTEND_PLAN_CUH_

#include <cstdint>

#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.h"
#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

inline constexpr uint32_t kNoRow = 0xFFFFFFFFu;

// Every row of the launch, in shared memory.
struct PlanRows {
  uint32_t* begin;         // [row_count + 1], costs of all rows before
  uint32_t* planes_units;  // [row_count]
  uint32_t* planes_cost;   // [row_count], of one unit

  static __host__ __device__ constexpr uint32_t Bytes(uint32_t row_count) {
    return (4 * (3 * row_count + 1) + 127) / 128 * 128;
  }
  __device__ PlanRows(std::byte* memory, uint32_t row_count)
      : begin(reinterpret_cast<uint32_t*>(memory)),
        planes_units(begin + row_count + 1),
        planes_cost(planes_units + row_count) {}
};

struct PlanMemory {
  uint32_t warp_sums[kWarpsMax];
  uint32_t warp_largest[kWarpsMax];
  uint32_t largest_unit;
};

// The ranges of a warp and of its block.
struct PlanCuts {
  PlanCut begin;
  PlanCut end;
  PlanCut block_begin;
  PlanCut block_end;
};

template <int kHeadDim>
__device__ uint32_t ExactTokenBytes(const AttendParameters& p) {
  return 2 * kHeadDim * (p.dtype == DType::kFp32 ? 4 : 2);
}

// Fills `rows` and plan.largest_unit. All threads; ends with a barrier.
template <int kHeadDim>
__device__ void FillPlanRows(const AttendParameters& p, const PlanRows& rows, PlanMemory& plan) {
  const uint32_t warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const uint32_t each = (p.row_count + blockDim.x - 1) / blockDim.x;
  const uint32_t begin = min(threadIdx.x * each, p.row_count);
  const uint32_t end = min(begin + each, p.row_count);
  uint32_t sum = 0;
  uint32_t largest = 0;
#pragma unroll 1
  for (uint32_t row = begin; row < end; ++row) {
    const uint32_t head = p.Head(row);
    const AttendCell& cell = p.cells[p.kv_heads.Of(head)];
    // What is read next.
    ptx::Touch(&cell);
    ptx::Touch(&cell.output);
    ptx::Touch(cell.exact);
    if (cell.heads != nullptr) ptx::Touch(&cell.heads[p.kv_heads.Rest(head)].record_bytes);
    const RowCosts costs = CostsOf(cell, p.block_cost_bytes[head], ExactTokenBytes<kHeadDim>(p));
    rows.begin[row] = sum;
    rows.planes_units[row] = costs.planes_units;
    rows.planes_cost[row] = costs.planes_cost;
    sum += costs.total();
    largest = max(largest, costs.largest_unit());
  }
  uint32_t before = sum;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (lane == 31) {
    plan.warp_sums[warp] = before;
    plan.warp_largest[warp] = largest;
  }
  __syncthreads();
  before -= sum;
#pragma unroll 1
  for (uint32_t other = 0; other < warp; ++other) before += plan.warp_sums[other];
#pragma unroll 1
  for (uint32_t row = begin; row < end; ++row) rows.begin[row] += before;
  if (threadIdx.x == blockDim.x - 1) {
    rows.begin[p.row_count] = before + sum;
#pragma unroll 1
    for (uint32_t other = 0; other < warp; ++other)
      largest = max(largest, plan.warp_largest[other]);
    plan.largest_unit = largest;
  }
  __syncthreads();
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

// Where warp `warp` begins. Quotients need not be exact, as all threads compute them alike.
template <int kHeadDim>
__device__ __forceinline__ PlanCut CutOf(const AttendParameters& p, const PlanRows& rows,
                                         const PlanGrid& grid, uint32_t warp) {
  const uint32_t total = rows.begin[p.row_count];
  const float part = __fdividef(static_cast<float>(warp), static_cast<float>(grid.warps()));
  const uint32_t offset = static_cast<uint32_t>(static_cast<float>(total) * part);
  const uint32_t row = RowAt(rows.begin, p.row_count, offset);
  RowCosts costs;
  costs.planes_units = rows.planes_units[row];
  costs.planes_cost = rows.planes_cost[row];
  costs.exact_cost = ExactCost(ExactTokenBytes<kHeadDim>(p));
  costs.SetTotal(rows.begin[row + 1] - rows.begin[row]);
  const uint32_t unit = costs.NearestUnit(offset - rows.begin[row]);
  if (warp >= grid.warps()) return {p.row_count, 0};
  if (unit >= costs.units()) return {row + 1, 0};
  return {row, unit};
}

// Of warp `warp` of the block. The whole warp takes part, four lanes with a cut each.
template <int kHeadDim>
__device__ __forceinline__ PlanCuts CutsOf(const AttendParameters& p, const PlanRows& rows,
                                           const PlanGrid& grid, uint32_t warp) {
  const uint32_t first_warp = blockIdx.x * grid.warps_per_cta;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t of_lane = lane < 2 ? warp + lane : lane == 2 ? 0 : grid.warps_per_cta;
  const PlanCut cut = CutOf<kHeadDim>(p, rows, grid, first_warp + of_lane);
  const auto from = [&](int source) {
    return PlanCut{__shfl_sync(kAllLanes, cut.row, source),
                   __shfl_sync(kAllLanes, cut.unit, source)};
  };
  return {from(0), from(1), from(2), from(3)};
}

// The block in whose range the first unit of `row` lies, or the last one.
template <int kHeadDim>
__device__ __forceinline__ uint32_t BlockOf(const AttendParameters& p, const PlanRows& rows,
                                            const PlanGrid& grid, uint32_t row, bool last) {
  const uint32_t offset = rows.begin[last ? row + 1 : row];
  const uint32_t near =
      static_cast<uint32_t>(offset * __fdividef(static_cast<float>(grid.ctas),
                                                static_cast<float>(rows.begin[p.row_count])));
  // Cuts are rounded: the block is one of three.
#pragma unroll 1
  for (uint32_t block = min(near + 1, grid.ctas - 1);; --block) {
    if (block == 0) return 0;
    const PlanCut cut = CutOf<kHeadDim>(p, rows, grid, block * grid.warps_per_cta);
    if (cut.row < row || (cut.row == row && (last || cut.unit == 0))) return block;
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_PLAN_CUH_
