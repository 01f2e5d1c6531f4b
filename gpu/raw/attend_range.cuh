// Attention of one warp over consecutive chunks of exact tokens of one KV head.
#ifndef KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_
#define KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_ring.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/raw/attend_chunks.cuh"
#include "gpu/raw/attend_scalar.cuh"
#include "gpu/raw/attend_tensor.cuh"

namespace kvdepot::raw {

// Chunks that are asked for before they are loaded: as many as a load from the device's memory
// takes.
inline constexpr int kChunksAhead = 6;

// Units [unit_begin, unit_end) of the cell's exact list, added to `state`. Not inlined: most warps
// never come to exact tokens. Takes and returns the ring's phases.
template <int kHeadDim, int kRows, bool kIsBf16>
__device__ __noinline__ uint32_t AttendTwoBytes(RowView view, uint32_t unit_begin,
                                                uint32_t unit_end, RowLimits limits, float soft_cap,
                                                WarpMemory<kHeadDim> memory, uint32_t ring_bytes,
                                                uint32_t phases, RowState<kHeadDim> state,
                                                int lane) {
  using Attention = TensorAttention<kHeadDim, kRows, kIsBf16>;
  ChunkWalk<Attention::kRowBytes> walk(view, unit_begin, unit_end, lane);
  Ring<kHeadDim> ring(memory, ring_bytes, lane, phases);
  ChunkFeed<kHeadDim, Attention::kRowBytes> feed(walk, ring);
  const int row = lane / 4;
  const bool is_row = row < kRows && view.first_row + row < view.rows();
  const std::byte* const q = is_row ? view.cell->q + 2 * kHeadDim * view.Index(row) : nullptr;
  Attention attention(q, view.cell->scale, soft_cap, limits, lane);
#pragma unroll 1
  for (ChunkRows rows = walk.Next(); rows.count > 0; rows = walk.Next()) {
    float y[4];
    attention.Logits(feed.Wait(), rows.count, rows.position, y);
    __syncwarp();
    feed.LoadHalf();
    attention.AddValues(feed.Wait(), rows.count, y);
    __syncwarp();
    feed.LoadHalf();
  }
  const RowState<kHeadDim> exact{memory.exact()};
  attention.Store(exact);
  AddByChannel(exact, view.v_order(), kRows, lane, state);
  return ring.phases();
}
// By loads: no dtype to be fast in.
template <int kHeadDim, int kRows>
__device__ __noinline__ void AttendFourBytes(RowView view, uint32_t unit_begin, uint32_t unit_end,
                                             RowLimits limits, float soft_cap,
                                             WarpMemory<kHeadDim> memory, RowState<kHeadDim> state,
                                             int lane) {
  using Attention = ScalarAttention<kHeadDim, kRows>;
  ChunkWalk<Attention::kRowBytes> walk(view, unit_begin, unit_end, lane);
  ChunkWalk<Attention::kRowBytes> ahead = walk;
  QueryLoad<kHeadDim, kRows> queries;
  queries.Begin(view, DType::kFp32, lane);
  queries.End(view.cell->scale, DType::kFp32, lane, memory.q);
  Attention attention(limits, soft_cap, memory.q, memory.exact(), lane);
#pragma unroll 1
  for (int i = 0; i < kChunksAhead; ++i) PrefetchChunk<Attention::kRowBytes>(ahead.Next(), lane);
#pragma unroll 1
  for (ChunkRows rows = walk.Next(); rows.count > 0; rows = walk.Next()) {
    PrefetchChunk<Attention::kRowBytes>(ahead.Next(), lane);
    attention.Add(rows);
  }
  const RowState<kHeadDim> exact{memory.exact()};
  attention.Store(exact);
  AddByChannel(exact, view.v_order(), kRows, lane, state);
}

template <int kHeadDim, int kRows>
__device__ __forceinline__ void AttendRange(const RowView& view, DType dtype, uint32_t unit_begin,
                                            uint32_t unit_end, const RowLimits& limits,
                                            float soft_cap, const WarpMemory<kHeadDim>& memory,
                                            Ring<kHeadDim>& ring, const RowState<kHeadDim>& state,
                                            int lane) {
  if (dtype == DType::kFp32) {
    AttendFourBytes<kHeadDim, kRows>(view, unit_begin, unit_end, limits, soft_cap, memory, state,
                                     lane);
  } else if (dtype == DType::kBf16) {
    ring.SetPhases(AttendTwoBytes<kHeadDim, kRows, true>(view, unit_begin, unit_end, limits,
                                                         soft_cap, memory, ring.bytes(),
                                                         ring.phases(), state, lane));
  } else {
    ring.SetPhases(AttendTwoBytes<kHeadDim, kRows, false>(view, unit_begin, unit_end, limits,
                                                          soft_cap, memory, ring.bytes(),
                                                          ring.phases(), state, lane));
  }
}

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_RANGE_CUH_
