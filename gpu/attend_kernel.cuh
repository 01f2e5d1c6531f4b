// The attend kernel: plan, the warps' ranges, and the merge of what they found.
//
//   plan      every block computes the cost of every row and where its warps begin (attend_plan.h)
//   range     a warp reads its units: `planes` blocks through a ring in shared memory that bulk
//             copies fill, then exact chunks; the state of a row lies in shared memory
//   merge     rows of several warps of a block are merged there; rows of several blocks by the
//             block that arrives last. No block waits for another one.
#ifndef KVDEPOT_GPU_ATTEND_KERNEL_CUH_
#define KVDEPOT_GPU_ATTEND_KERNEL_CUH_

#include "gpu/attend_launch.h"
#include "gpu/attend_plan.h"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/planes/attend_range.cuh"
#include "gpu/raw/attend_range.cuh"

namespace kvdepot {

struct AttendParameters {
  const AttendCell* cells;
  const AttendRow* rows;
  uint32_t row_count;
  uint32_t kv_heads;
  uint32_t query_heads;
  uint32_t sliding_window;
  float soft_cap;
  DType dtype;
  uint32_t slot_bytes;
  uint32_t header_bytes;
  float* parts;        // [block][2] of a row's state
  uint32_t* arrivals;  // [row], zero between launches
};

inline constexpr int kWarpsMax = 8;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The plan as the block's threads share it.
struct PlanMemory {
  uint32_t* row_begin;  // [row_count + 1], costs
  uint32_t warp_sums[kWarpsMax];
  uint32_t largest_unit;
  PlanCut cuts[kWarpsMax + 1];
  uint32_t last_arrival;
  // Of each warp's first and last row, if other warps have a share in it.
  uint32_t partial_row[kWarpsMax][2];
};
inline constexpr uint32_t kNoRow = 0xFFFFFFFFu;

template <int kHeadDim>
__device__ RowCosts CostsOfRow(const AttendParameters& p, uint32_t row) {
  const AttendRow at = p.rows[row];
  const AttendCell& cell = p.cells[at.cell];
  const uint32_t record_bytes =
      cell.planes_units > 0 ? cell.heads[at.kv_head].record_bytes : kCostBytes;
  const uint32_t token_bytes = 2 * kHeadDim * (p.dtype == DType::kFp32 ? 4 : 2);
  return CostsOf(cell, record_bytes, token_bytes);
}

// row_begin and largest_unit. All threads.
template <int kHeadDim>
__device__ void PlanRows(const AttendParameters& p, PlanMemory& plan) {
  const uint32_t threads = blockDim.x;
  const uint32_t each = (p.row_count + threads - 1) / threads;
  const uint32_t begin = min(threadIdx.x * each, p.row_count);
  const uint32_t end = min(begin + each, p.row_count);
  uint32_t sum = 0;
  uint32_t largest = 0;
  for (uint32_t row = begin; row < end; ++row) {
    const RowCosts costs = CostsOfRow<kHeadDim>(p, row);
    plan.row_begin[row] = sum;
    sum += costs.total();
    largest = max(largest, costs.largest_unit());
  }
  uint32_t before = sum;
  const int lane = threadIdx.x % 32;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, before, distance);
    if (lane >= distance) before += other;
  }
  if (lane == 31) plan.warp_sums[threadIdx.x / 32] = before;
  largest = __reduce_max_sync(kAllLanes, largest);
  if (threadIdx.x == 0) plan.largest_unit = 0;
  __syncthreads();
  if (lane == 0) atomicMax(&plan.largest_unit, largest);
  before -= sum;
  for (uint32_t warp = 0; warp < threadIdx.x / 32; ++warp) before += plan.warp_sums[warp];
  for (uint32_t row = begin; row < end; ++row) plan.row_begin[row] += before;
  if (threadIdx.x == threads - 1) plan.row_begin[p.row_count] = before + sum;
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

template <int kHeadDim>
__device__ PlanCut CutOf(const AttendParameters& p, const PlanMemory& plan, const PlanGrid& grid,
                         uint32_t warp) {
  const uint32_t total = plan.row_begin[p.row_count];
  if (warp >= grid.warps()) return {p.row_count, 0};
  if (warp == 0) return {0, 0};
  const uint32_t offset = RangeBegin(total, grid, warp);
  const uint32_t row = RowAt(plan.row_begin, p.row_count, offset);
  const RowCosts costs = CostsOfRow<kHeadDim>(p, row);
  const uint32_t unit = costs.NearestUnit(offset - plan.row_begin[row]);
  if (unit >= costs.units()) return {row + 1, 0};
  return {row, unit};
}

// The block in whose range unit 0 of `row` (or, at_end, the unit before the row's end) lies.
template <int kHeadDim>
__device__ uint32_t BlockOf(const AttendParameters& p, const PlanMemory& plan, const PlanGrid& grid,
                            uint32_t row, bool at_end) {
  const uint64_t total = plan.row_begin[p.row_count];
  const uint32_t offset = plan.row_begin[at_end ? row + 1 : row];
  const uint32_t guess = static_cast<uint32_t>(static_cast<uint64_t>(offset) * grid.ctas / total);
  uint32_t block = guess + 1 < grid.ctas ? guess + 1 : grid.ctas - 1;
  // The first of at most three whose cut lies at or before the unit.
  for (;; --block) {
    if (block == 0) return 0;
    const PlanCut cut = CutOf<kHeadDim>(p, plan, grid, block * grid.warps_per_cta);
    if (cut.row < row) return block;
    if (cut.row == row && (at_end || cut.unit == 0)) return block;
  }
}

// Combines `count` states of a row (each AttendState<kHeadDim, kTiles>) in order, and hands value
// `index` of the row's output to `store(query row, place, value, reference, sum)`.
template <int kHeadDim, int kTiles, class Get, class Store>
__device__ void MergeStates(uint32_t count, const Get& get, const Store& store) {
  constexpr int kRows = 4 * kTiles;
  for (int index = threadIdx.x; index < kRows * kHeadDim; index += blockDim.x) {
    const int row = index / kHeadDim;
    const int place = index % kHeadDim;
    float reference = kNoReference;
    for (uint32_t i = 0; i < count; ++i) reference = fmaxf(reference, get(i).reference(row));
    float output = 0;
    float sum = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const float factor = ptx::Exp2(get(i).reference(row) - reference);
      output += factor * get(i).output(row, place);
      sum += factor * get(i).sum(row);
    }
    store(row, place, output, reference, sum);
  }
}

template <int kHeadDim, int kTiles>
__device__ void MergeBlock(const AttendParameters& p, PlanMemory& plan, const PlanGrid& grid,
                           const WarpMemoryLayout<kHeadDim, kTiles>& memory, std::byte* warps) {
  constexpr int kRows = 4 * kTiles;
  const uint32_t block = blockIdx.x;
  const PlanCut begin = plan.cuts[0];
  const PlanCut end = plan.cuts[grid.warps_per_cta];
  const uint32_t entries = 2 * grid.warps_per_cta;
  uint32_t entry = 0;
  while (entry < entries) {
    const uint32_t row = plan.partial_row[entry / 2][entry % 2];
    if (row == kNoRow) {
      ++entry;
      continue;
    }
    // Entries of a row follow each other, with unused second ones between.
    uint8_t members[2 * kWarpsMax];
    uint32_t count = 0;
    for (; entry < entries; ++entry) {
      const uint32_t other = plan.partial_row[entry / 2][entry % 2];
      if (other == kNoRow) continue;
      if (other != row) break;
      members[count++] = static_cast<uint8_t>(entry);
    }
    const auto get = [&](uint32_t i) {
      return SharedState<kHeadDim>{memory.partial(warps, members[i] / 2, members[i] % 2)};
    };
    const RowView view = RowView::Of(p.cells, p.rows[row], p.kv_heads, p.query_heads, kRows);
    const auto finish = [&](int query_row, int place, float output, float reference, float sum) {
      view.Store<kHeadDim>(query_row, place, output, reference, sum);
    };
    const bool from_before = begin.row == row && begin.unit > 0;
    const bool to_after = end.row == row && end.unit > 0;
    if (!from_before && !to_after) {
      MergeStates<kHeadDim, kTiles>(count, get, finish);
      continue;
    }
    float* const parts = p.parts;
    const auto part = [&](uint32_t of_block, bool first) {
      return GlobalState<kHeadDim, kRows>{parts + (2 * of_block + (first ? 0 : 1)) *
                                                      GlobalState<kHeadDim, kRows>::kFloats};
    };
    const GlobalState<kHeadDim, kRows> mine = part(block, from_before);
    MergeStates<kHeadDim, kTiles>(
        count, get, [&](int query_row, int place, float output, float reference, float sum) {
          mine.Store(query_row, place, output, reference, sum);
        });
    const uint32_t first_block = BlockOf<kHeadDim>(p, plan, grid, row, false);
    const uint32_t last_block = BlockOf<kHeadDim>(p, plan, grid, row, true);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) plan.last_arrival = atomicAdd(&p.arrivals[row], 1u);
    __syncthreads();
    if (plan.last_arrival != last_block - first_block) continue;
    __threadfence();
    MergeStates<kHeadDim, kTiles>(
        last_block - first_block + 1, [&](uint32_t i) { return part(first_block + i, i > 0); },
        finish);
    if (threadIdx.x == 0) p.arrivals[row] = 0;
  }
}

template <int kHeadDim, int kTiles>
__global__ void __launch_bounds__(32 * kWarpsMax, 1)
    AttendKernel(const __grid_constant__ AttendParameters p) {
  constexpr int kRows = 4 * kTiles;
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ PlanMemory plan;
  const uint32_t warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const WarpMemoryLayout<kHeadDim, kTiles> memory(p.slot_bytes);
  std::byte* const warps = shared + RowBeginBytes(p.row_count);
  const WarpMemory<kHeadDim> mine = memory.Of(warps, warp);

  if (threadIdx.x == 0) plan.row_begin = reinterpret_cast<uint32_t*>(shared);
  if (lane < 2) plan.partial_row[warp][lane] = kNoRow;
  if (lane == 0) {
    for (int i = 0; i < kWarpBarriers; ++i) ptx::BarrierInit(&mine.barriers[i]);
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  PlanRows<kHeadDim>(p, plan);
  const PlanGrid grid =
      GridFor(plan.row_begin[p.row_count], plan.largest_unit, gridDim.x, blockDim.x / 32);
  if (blockIdx.x >= grid.ctas) return;
  if (threadIdx.x <= grid.warps_per_cta) {
    plan.cuts[threadIdx.x] =
        CutOf<kHeadDim>(p, plan, grid, blockIdx.x * grid.warps_per_cta + threadIdx.x);
  }
  __syncthreads();

  if (warp < grid.warps_per_cta) {
    const PlanCut begin = plan.cuts[warp];
    const PlanCut end = plan.cuts[warp + 1];
    planes::Ring<kHeadDim> ring(mine, p.slot_bytes, lane);
    for (uint32_t row = begin.row; row < p.row_count; ++row) {
      if (row > end.row || (row == end.row && end.unit == 0)) break;
      const AttendRow at = p.rows[row];
      const AttendCell& cell = p.cells[at.cell];
      const uint32_t units = cell.planes_units + cell.exact_units;
      const uint32_t unit_begin = row == begin.row ? begin.unit : 0;
      const uint32_t unit_end = row == end.row ? end.unit : units;
      const RowView view = RowView::Of(p.cells, at, p.kv_heads, p.query_heads, kRows);
      const bool whole = unit_begin == 0 && unit_end == units;
      // The first row keeps its state until the merge; later ones share the other place.
      const int place = row == begin.row ? 0 : 1;
      const SharedState<kHeadDim> state{memory.partial(warps, warp, place)};
      state.Clear(kRows, lane);
      LoadQueries<kHeadDim>(view, p.dtype, kRows, lane, mine.q);
      __syncwarp();
      const RowLimits limits = RowLimits::Of(view, kRows, p.sliding_window);
      if (unit_begin < cell.planes_units) {
        planes::AttendRange<kHeadDim, kTiles>(cell, at.kv_head, p.header_bytes, unit_begin,
                                              min(unit_end, cell.planes_units), limits, p.soft_cap,
                                              mine, ring, state, lane);
      }
      if (unit_end > cell.planes_units) {
        raw::AttendRange<kHeadDim, kRows>(
            cell, at.kv_head, p.dtype, max(unit_begin, cell.planes_units) - cell.planes_units,
            unit_end - cell.planes_units, limits, p.soft_cap, mine, state, lane);
      }
      __syncwarp();
      if (whole) {
        for (int index = lane; index < kRows * kHeadDim; index += 32) {
          const int query_row = index / kHeadDim;
          const int at_place = index % kHeadDim;
          view.Store<kHeadDim>(query_row, at_place, state.output(query_row, at_place),
                               state.reference(query_row), state.sum(query_row));
        }
        __syncwarp();
      } else if (lane == 0) {
        plan.partial_row[warp][place] = row;
      }
    }
  }
  __syncthreads();
  MergeBlock<kHeadDim, kTiles>(p, plan, grid, memory, warps);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_KERNEL_CUH_
