// The attend kernel: plan, the warps' ranges, and the merge of what they found.
//
//   plan      every block computes the cost of every row and where its warps begin (attend_plan.h)
//   range     a warp reads its units, sealed blocks, then exact chunks, through a ring in shared
//             memory that bulk copies fill; the state of a row lies in shared memory
//   merge     rows of several warps of a block are merged there, those of several blocks by one
//             warp a query row, which waits for their parts
#ifndef KVDEPOT_GPU_ATTEND_KERNEL_CUH_
#define KVDEPOT_GPU_ATTEND_KERNEL_CUH_

#include "gpu/attend_launch.h"
#include "gpu/attend_merge.cuh"
#include "gpu/attend_parameters.cuh"
#include "gpu/attend_plan.cuh"
#include "gpu/attend_ring.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/packkv/attend_range.cuh"
#include "gpu/planes/attend_range.cuh"
#include "gpu/raw/attend_range.cuh"

namespace kvdepot {

// A warp's share of one row: units [begin, end).
template <int kHeadDim, int kTiles, Codec kCodec>
__device__ __forceinline__ void AttendUnits(const AttendParameters& p, const RowView& view,
                                            uint32_t begin, uint32_t end,
                                            const WarpMemory<kHeadDim>& memory,
                                            Ring<kHeadDim>& ring, const RowState<kHeadDim>& state,
                                            int lane) {
  constexpr int kRows = 4 * kTiles;
  const AttendCell& cell = *view.cell;
  const uint32_t coded_units = cell.coded_units;
  if (begin < coded_units) {
    // Before the records, which they would have to wait for.
    QueryLoad<kHeadDim, kRows> queries;
    queries.Begin(view, p.dtype, lane);
    if constexpr (kCodec == Codec::kPlanes)
      queries.BeginOrder(cell.heads[view.kv_head].k_order, lane);
    const auto prepare = [&] {
      state.Clear(kRows, lane);
      queries.End(cell.scale, p.dtype, lane, memory.q);
      if constexpr (kCodec == Codec::kPlanes) queries.SortByPlace(lane, memory.q);
      return RowLimits::Of(view, kRows, p.sliding_window);
    };
    if constexpr (kCodec == Codec::kPlanes) {
      planes::AttendRange<kHeadDim, kTiles>(cell, view.kv_head, p.header_bytes, begin,
                                            min(end, coded_units), p.soft_cap, memory, ring, state,
                                            lane, prepare);
    } else {
      packkv::AttendRange<kHeadDim>(cell, view.kv_head, p.kv_heads.divisor, p.header_bytes, begin,
                                    min(end, coded_units), p.soft_cap, memory, ring, state, lane,
                                    prepare);
    }
  } else {
    state.Clear(kRows, lane);
  }
  if (end > coded_units) {
    raw::AttendRange<kHeadDim, kRows>(
        view, p.dtype, max(begin, coded_units) - coded_units, end - coded_units,
        RowLimits::Of(view, kRows, p.sliding_window), p.soft_cap, memory, ring, state, lane);
  }
  __syncwarp();
}

// Copies a state to its place in device memory, and returns that.
template <int kHeadDim, int kTiles>
__device__ float* Spill(float* spills, uint32_t warp, const RowState<kHeadDim>& state, int lane) {
  constexpr uint32_t kFloats = RowState<kHeadDim>::Floats(4 * kTiles);
  float* const to = spills + kFloats * warp;
  for (uint32_t i = 4 * lane; i < kFloats; i += 128)
    *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(state.base + i);
  __syncwarp();
  return to;
}

template <int kHeadDim, int kTiles, Codec kCodec>
__global__ void __launch_bounds__(32 * kWarpsMax, 1)
    AttendKernel(const __grid_constant__ AttendParameters p) {
  constexpr int kRows = 4 * kTiles;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ PlanMemory plan;
  __shared__ MergeMemory merge;
  const uint32_t warp = Uniform(threadIdx.x / 32);
  const int lane = threadIdx.x % 32;
  const WarpMemoryLayout<kHeadDim, kTiles, kCodec> memory(p.ring_bytes);
  std::byte* const warps = shared + PlanRows::Bytes(p.row_count);
  const WarpMemory<kHeadDim> mine = memory.Of(warps, warp);

  const PlanRows rows(shared);
  if (lane == 0) {
    for (int i = 0; i < kWarpBarriers; ++i) ptx::BarrierInit(&mine.barriers[i]);
    ptx::FenceBarrierInit();
  }
  // Of AttendLaunch::follows_cells; returns at once otherwise.
  cudaGridDependencySynchronize();
  const uint32_t largest_unit = FillPlanRows<kHeadDim>(p, rows, plan);
  const PlanGrid grid = GridFor(rows.begin[p.row_count], largest_unit, gridDim.x, blockDim.x / 32);
  if (blockIdx.x >= grid.ctas) return;
  const PlanCuts cuts = CutsOf<kHeadDim>(p, rows, grid);
  const PlanCut begin = cuts.Of(warp);
  const PlanCut end = cuts.Of(warp + 1);

  Ring<kHeadDim> ring(mine, p.ring_bytes, lane);
  const uint32_t row_end = end.row + (end.unit > 0 ? 1 : 0);
  for (uint32_t row = begin.row; row < row_end; ++row) {
    if (begin == end) break;
    const RowView view = p.View(row, kRows);
    const uint32_t units = view.cell->coded_units + view.cell->exact_units;
    const uint32_t unit_begin = row == begin.row ? begin.unit : 0;
    const uint32_t unit_end = row == end.row ? end.unit : units;
    const RowState<kHeadDim> state{mine.state};
    AttendUnits<kHeadDim, kTiles, kCodec>(p, view, unit_begin, unit_end, mine, ring, state, lane);
    if (unit_begin == 0 && unit_end == units) {
      for (int at = 0; at < kRows; ++at)
        MergedRow<kHeadDim>::Of(state, at, lane).StoreResult(view, at, lane);
      __syncwarp();
    } else {
      // A row that ends here keeps its state until the merge; the next one needs the place.
      const bool spills = row + 1 < row_end;
      float* const kept =
          spills ? Spill<kHeadDim, kTiles>(p.spills, blockIdx.x * kWarpsMax + warp, state, lane)
                 : state.base;
      if (lane == 0) merge.entry_state[2 * warp + (spills ? 0 : 1)] = kept;
    }
  }
  // The first warp that is through says who merges what, while others still read.
  if (Uniform(lane == 0 ? atomicAdd(&plan.warps_through, 1) : 0) == 0)
    FillMergeMemory<kHeadDim>(p, rows, grid, cuts, merge);
  __syncthreads();
  MergeRows<kHeadDim, kRows>(p, merge);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_KERNEL_CUH_
