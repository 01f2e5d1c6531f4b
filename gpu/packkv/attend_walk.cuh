// Where the tiles of a warp's range lie, and their way to shared memory.
#ifndef KVDEPOT_GPU_PACKKV_ATTEND_WALK_CUH_
#define KVDEPOT_GPU_PACKKV_ATTEND_WALK_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_ring.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/format.h"
#include "gpu/packkv/round.cuh"
#include "gpu/unit_search.cuh"

namespace kvdepot::packkv {

// A full segment has so many steps: where to look for a unit's run first.
inline constexpr uint32_t kRunSteps = kSegmentTokensMax / kBlockTokens / kStepBlocks;

// Tiles travel in pieces of two rounds, K's before V's, each with the units of its first round
// behind it.
inline constexpr int kPieceRounds = 2;
inline constexpr int kBlockPieces = 2 * kRounds / kPieceRounds;
constexpr uint32_t PieceBytesMax(int head_dim) {
  return kPieceRounds * RoundBytesMax(head_dim, kNibbleCodeBits);
}
// A round's fields are read in whole words, so that those behind a piece are read too.
constexpr uint32_t SlotBytes(int head_dim) { return PieceBytesMax(head_dim) + 16; }

// Walks over the blocks of a range of a cell's runs.
class BlockWalk {
 public:
  const std::byte* body;
  uint32_t block;        // of the body
  uint32_t blocks_left;  // of the range in this run, from here on; 0: the range ends here

  // Units [unit_begin, unit_end), not empty. The whole warp takes part.
  __device__ BlockWalk(const AttendCell& cell, uint32_t header_bytes, uint32_t unit_begin,
                       uint32_t unit_end, int lane)
      : steps_left_(unit_end - unit_begin),
        run_(cell.planes +
             RunAt(cell.planes, cell.planes_runs, unit_begin, unit_begin / kRunSteps, lane)) {
    Enter(header_bytes, unit_begin - run_->unit_begin);
  }
  __device__ void Next(uint32_t header_bytes) {
    ++block;
    if (--blocks_left > 0 || steps_left_ == 0) return;
    ++run_;
    Enter(header_bytes, 0);
  }
  // The run of the block: which of its tokens are visible, and where.
  __device__ const PlanesRun& run() const { return *run_; }
  __device__ const TokenTable& table() const {
    return *reinterpret_cast<const TokenTable*>(body + TokenTableAt(static_cast<int>(block)));
  }
  __device__ const BodyHeader& header() const { return *reinterpret_cast<const BodyHeader*>(body); }
  // A head's entry of the block's directory.
  __device__ const std::byte* entry(uint32_t kv_head, uint32_t kv_heads) const {
    return body + DirectoryAt(run_->blocks) +
           (block * kv_heads + kv_head) * EntryBytes(kPackTokens);
  }

 private:
  __device__ void Enter(uint32_t header_bytes, uint32_t skipped_steps) {
    const PlanesRun run = *run_;
    body = run.segment + header_bytes;
    block = Uniform(run.first_block) + kStepBlocks * skipped_steps;
    const uint32_t end = Uniform(run.first + run.count);
    blocks_left = min((end + kBlockTokens - 1) / kBlockTokens - block, kStepBlocks * steps_left_);
    steps_left_ -= (blocks_left + kStepBlocks - 1) / kStepBlocks;
  }

  uint32_t steps_left_;  // after the run
  const PlanesRun* run_;
};

// The pieces of a block and of the next one on their way through the ring, which has a slot less
// than a block has pieces: once piece i is used, piece i + 3 is asked for.
template <int kHeadDim>
class PieceFeed {
 public:
  static constexpr uint32_t kSlots = kBlockPieces - 1;
  static_assert(kSlots == kRingSlotsMin, "a ring of the smallest size has them");

  __device__ __forceinline__ PieceFeed(const BlockWalk& walk, uint32_t kv_head, uint32_t kv_heads,
                                       Ring<kHeadDim>& ring, int lane)
      : kv_head_(kv_head), kv_heads_(kv_heads), ring_(ring), lane_(lane) {
    ring_.Begin(SlotBytes(kHeadDim), kSlots);
    Look(walk);
    LoadPiece(0);
    LoadPiece(1);
    LoadPiece(2);
  }
  // Piece `piece` of the block, the next in turn: its first round, and the units of that.
  __device__ __forceinline__ const std::byte* Wait(uint32_t* first_units) {
    const std::byte* const piece = ring_.WaitPiece();
    *first_units = *reinterpret_cast<const uint32_t*>(piece + PieceBytesMax(kHeadDim));
    return piece;
  }
  // After a __syncwarp behind the last use of piece `piece` of `walk`'s block.
  __device__ __forceinline__ void Used(int piece, const BlockWalk& walk, uint32_t header_bytes) {
    if (piece == 0) {
      LoadPiece(kSlots);
      BlockWalk next = walk;
      next.Next(header_bytes);
      has_next_ = next.blocks_left > 0;
      if (has_next_) Look(next);
    } else if (has_next_) {
      LoadPiece(piece - 1);
    }
  }

 private:
  __device__ __forceinline__ void Look(const BlockWalk& walk) {
    const std::byte* const entry = walk.entry(kv_head_, kv_heads_);
    body_ = walk.body;
    begins_ = *reinterpret_cast<const uint2*>(entry);
    k_units_ = *reinterpret_cast<const uint2*>(entry + EntryUnitsAt(true, kPackTokens));
    v_units_ = *reinterpret_cast<const uint2*>(entry + EntryUnitsAt(false, kPackTokens));
  }
  // Of the block that was looked at.
  __device__ __forceinline__ void LoadPiece(int piece) {
    const bool is_value = piece >= kBlockPieces / 2;
    const bool is_second = piece % 2 == 1;
    const uint2 units = is_value ? v_units_ : k_units_;
    const uint32_t own = is_second ? units.y : units.x;
    uint32_t at = is_value ? begins_.y : begins_.x;
    if (is_second) at += (units.x & 0xFFFFu) + (units.x >> 16);
    const uint32_t first = own & 0xFFFFu;
    std::byte* const slot =
        ring_.LoadPiece(body_ + kUnitBytes * at, kUnitBytes * (first + (own >> 16)));
    if (lane_ == 0) *reinterpret_cast<uint32_t*>(slot + PieceBytesMax(kHeadDim)) = first;
  }

  const uint32_t kv_head_;
  const uint32_t kv_heads_;
  Ring<kHeadDim>& ring_;
  const int lane_;
  bool has_next_ = false;
  const std::byte* body_;
  uint2 begins_;
  uint2 k_units_;
  uint2 v_units_;
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ATTEND_WALK_CUH_
