// The chunks of a range of a cell's exact runs, one after the other.
#ifndef KVDEPOT_GPU_RAW_ATTEND_CHUNKS_CUH_
#define KVDEPOT_GPU_RAW_ATTEND_CHUNKS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_ring.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/unit_search.cuh"

namespace kvdepot::raw {

// A block of tokens has so many chunks: where to look for a unit's run first.
inline constexpr uint32_t kRunChunks = kBlockTokens / kExactChunkTokens;

// Of K or V of a chunk that goes through the ring; fp32 does not.
constexpr uint32_t RingPieceBytes(int head_dim, DType dtype) {
  return dtype == DType::kFp32 ? 0 : 2 * static_cast<uint32_t>(head_dim) * kExactChunkTokens;
}

// Where a chunk's rows of one KV head lie: `count` tokens, the first of position `position`.
struct ChunkRows {
  const std::byte* k;
  const std::byte* v;
  int count;  // 0: no chunk
  uint32_t position;
};

template <uint32_t kRowBytes>
class ChunkWalk {
 public:
  // Units [unit_begin, unit_end), not empty. The whole warp takes part.
  __device__ ChunkWalk(const RowView& view, uint32_t unit_begin, uint32_t unit_end, int lane)
      : left_(unit_end - unit_begin),
        kv_head_(view.kv_head),
        run_(view.cell->exact + RunAt(view.cell->exact, view.cell->exact_runs, unit_begin,
                                      unit_begin / kRunChunks, lane)) {
    Enter((unit_begin - run_->unit_begin) * kTokens);
  }

  __device__ __forceinline__ ChunkRows Next() {
    if (left_ == 0) return {nullptr, nullptr, 0, 0};
    const ChunkRows rows{k_, k_ + v_distance_, static_cast<int>(min(tokens_, kTokens)), position_};
    --left_;
    if (tokens_ > kTokens) {
      k_ += kTokens * kRowBytes;
      tokens_ -= kTokens;
      position_ += kTokens;
    } else if (left_ > 0) {
      ++run_;
      Enter(0);
    }
    return rows;
  }

 private:
  static constexpr uint32_t kTokens = kExactChunkTokens;

  __device__ __forceinline__ void Enter(uint32_t skipped_tokens) {
    const ExactRun run = *run_;
    k_ = run.rows + run.head_stride_bytes * kv_head_ + (run.first + skipped_tokens) * kRowBytes;
    v_distance_ = run.capacity * kRowBytes;
    tokens_ = Uniform(run.count) - skipped_tokens;
    position_ = run.position + skipped_tokens;
  }

  uint32_t left_;  // chunks
  const uint32_t kv_head_;
  const ExactRun* run_;
  // Of the run from the next chunk on:
  const std::byte* k_;
  size_t v_distance_;
  uint32_t tokens_;
  uint32_t position_;
};

// The halves of chunks, K before V, on their way through the ring. A chunk is as long as a step of
// `planes`: in halves a ring of the same size has as much under way.
template <int kHeadDim, uint32_t kRowBytes>
class ChunkFeed {
 public:
  __device__ ChunkFeed(const ChunkWalk<kRowBytes>& walk, Ring<kHeadDim>& ring)
      : ahead_(walk), ring_(ring) {
    ring_.Begin(kRowBytes * kExactChunkTokens);
#pragma unroll 1
    for (uint32_t slot = 0; slot < ring_.slots(); ++slot) LoadHalf();
  }
  // The oldest half that was not taken yet. A __syncwarp after its last use, LoadHalf.
  __device__ __forceinline__ const std::byte* Wait() { return ring_.WaitPiece(); }
  // Asks for one more, if there is one.
  __device__ __forceinline__ void LoadHalf() {
    if (!is_value_) rows_ = ahead_.Next();
    if (rows_.count > 0) ring_.LoadPiece(is_value_ ? rows_.v : rows_.k, kRowBytes * rows_.count);
    is_value_ = !is_value_;
  }

 private:
  ChunkWalk<kRowBytes> ahead_;
  Ring<kHeadDim>& ring_;
  ChunkRows rows_ = {};
  bool is_value_ = false;
};

// Brings a chunk to the device's cache. The whole warp takes part.
template <uint32_t kRowBytes>
__device__ __forceinline__ void PrefetchChunk(const ChunkRows& rows, int lane) {
  constexpr uint32_t kLineBytes = 128;
  for (uint32_t at = kLineBytes * lane; at < kRowBytes * rows.count; at += 32 * kLineBytes) {
    ptx::PrefetchL2(rows.k + at);
    ptx::PrefetchL2(rows.v + at);
  }
}

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_ATTEND_CHUNKS_CUH_
