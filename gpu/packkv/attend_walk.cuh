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

// A step's pieces: K's tiles, then V's, each with what the directory says of them in front.
inline constexpr uint32_t kPieceSlots = 2;
constexpr uint32_t SlotBytes(int head_dim) {
  return sizeof(uint4) + kStepBlocks * TileBytesMax(head_dim);
}
inline constexpr uint32_t kStepTablesBytes = kStepBlocks * sizeof(TokenTable);

// Walks over the steps of a range of a cell's runs.
class StepWalk {
 public:
  const std::byte* body;
  uint32_t block;        // of the body, the step's first
  uint32_t blocks_left;  // of the range in this run, from here on; 0: the range ends here

  // Units [unit_begin, unit_end), not empty. The whole warp takes part.
  __device__ StepWalk(const AttendCell& cell, uint32_t header_bytes, uint32_t unit_begin,
                      uint32_t unit_end, int lane)
      : header_bytes_(header_bytes),
        steps_left_(unit_end - unit_begin),
        run_(cell.coded +
             RunAt(cell.coded, cell.coded_runs, unit_begin, unit_begin / kRunSteps, lane)) {
    Enter(unit_begin - run_->unit_begin);
  }
  __device__ void Next() {
    block += kStepBlocks;
    if (blocks_left > kStepBlocks) {
      blocks_left -= kStepBlocks;
      return;
    }
    blocks_left = 0;
    if (steps_left_ == 0) return;
    ++run_;
    Enter(0);
  }
  // Of the step.
  __device__ bool has_second() const { return blocks_left > 1; }
  // The run of the step: which of its tokens are visible, and where.
  __device__ const CodedRun& run() const { return *run_; }
  // Of the step's blocks, one behind the other.
  __device__ const std::byte* tables() const {
    return body + TokenTableAt(static_cast<int>(block));
  }
  __device__ const BodyHeader& header() const { return *reinterpret_cast<const BodyHeader*>(body); }
  // A head's entry in the directory, of the step's block `i`.
  __device__ const std::byte* entry(uint32_t i, uint32_t kv_head, uint32_t kv_heads) const {
    return body + DirectoryAt(run_->blocks) +
           ((block + i) * kv_heads + kv_head) * EntryBytes(kPackTokens);
  }

 private:
  __device__ void Enter(uint32_t skipped_steps) {
    const CodedRun run = *run_;
    body = run.segment + header_bytes_;
    block = Uniform(run.first_block) + kStepBlocks * skipped_steps;
    const uint32_t end = Uniform(run.first + run.count);
    blocks_left = min((end + kBlockTokens - 1) / kBlockTokens - block, kStepBlocks * steps_left_);
    steps_left_ -= (blocks_left + kStepBlocks - 1) / kStepBlocks;
  }

  const uint32_t header_bytes_;
  uint32_t steps_left_;  // after the run
  const CodedRun* run_;
};

// A piece in shared memory.
struct Piece {
  const std::byte* tiles;
  uint32_t second_at;  // of the second tile; of a step without one the first's
  uint2 units[kStepBlocks];

  __device__ __forceinline__ const std::byte* Round(int block, int round) const {
    return tiles +
           (block == 0 ? RoundBegin(units[0], round) : second_at + RoundBegin(units[1], round));
  }
};

// The pieces of a range on their way: while a step is computed the next one's is loaded.
template <int kHeadDim>
class PieceFeed {
 public:
  // `tables`: kStepTablesBytes of shared memory.
  __device__ __forceinline__ PieceFeed(const StepWalk& first, uint32_t kv_head, uint32_t kv_heads,
                                       Ring<kHeadDim>& ring, std::byte* tables, int lane)
      : ahead_(first),
        kv_head_(kv_head),
        kv_heads_(kv_heads),
        ring_(ring),
        tables_(tables),
        lane_(lane) {
    ring_.Begin(SlotBytes(kHeadDim), kPieceSlots);
    Look();
    LoadKeys();
    LoadValues();
  }
  // The next piece in turn, of step `walk`: K's with the step's tables.
  __device__ __forceinline__ Piece Wait(const StepWalk& walk) {
    const std::byte* const slot = ring_.WaitPiece();
    const uint4 units = *reinterpret_cast<const uint4*>(slot);
    const uint2 first = {units.x, units.y};
    return {slot + sizeof(uint4),
            walk.has_second() ? TileBytes(first) : 0,
            {first, {units.z, units.w}}};
  }
  // After a __syncwarp behind the last use of a step's K and tables.
  __device__ __forceinline__ void LoadKeys() {
    if (!has_next_) return;
    LoadPiece(0, ahead_.has_second() ? kStepTablesBytes : kStepTablesBytes / kStepBlocks);
  }
  // After a __syncwarp behind the last use of a step's V.
  __device__ __forceinline__ void LoadValues() {
    if (!has_next_) return;
    LoadPiece(1, 0);
    ahead_.Next();
    Look();
  }

 private:
  __device__ __forceinline__ void Look() {
    has_next_ = ahead_.blocks_left > 0;
    if (!has_next_) return;
#pragma unroll
    for (uint32_t i = 0; i < kStepBlocks; ++i) {
      const std::byte* const entry = ahead_.entry(ahead_.has_second() ? i : 0, kv_head_, kv_heads_);
      const uint2 begins = *reinterpret_cast<const uint2*>(entry);
      begins_[0][i] = begins.x;
      begins_[1][i] = begins.y;
      units_[0][i] = *reinterpret_cast<const uint2*>(entry + EntryUnitsAt(true, kPackTokens));
      units_[1][i] = *reinterpret_cast<const uint2*>(entry + EntryUnitsAt(false, kPackTokens));
    }
  }
  // Of the step that was looked at, K's (0) or V's.
  __device__ __forceinline__ void LoadPiece(int tensor, uint32_t tables_bytes) {
    const uint2(&units)[kStepBlocks] = units_[tensor];
    const uint32_t first_bytes = TileBytes(units[0]);
    const uint32_t second_bytes = ahead_.has_second() ? TileBytes(units[1]) : 0;
    std::byte* const slot = ring_.next_slot();
    if (lane_ == 0)
      *reinterpret_cast<uint4*>(slot) = {units[0].x, units[0].y, units[1].x, units[1].y};
    ring_.ExpectParts(first_bytes + second_bytes + tables_bytes);
    std::byte* const tiles = slot + sizeof(uint4);
    ring_.LoadPart(tiles, ahead_.body + kUnitBytes * begins_[tensor][0], first_bytes);
    ring_.LoadPart(tiles + first_bytes, ahead_.body + kUnitBytes * begins_[tensor][1],
                   second_bytes);
    ring_.LoadPart(tables_, ahead_.tables(), tables_bytes);
    ring_.EndParts();
  }

  StepWalk ahead_;
  const uint32_t kv_head_;
  const uint32_t kv_heads_;
  Ring<kHeadDim>& ring_;
  std::byte* const tables_;
  const int lane_;
  bool has_next_ = false;
  uint32_t begins_[2][kStepBlocks];
  uint2 units_[2][kStepBlocks];
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ATTEND_WALK_CUH_
