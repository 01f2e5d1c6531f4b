// Where the blocks of a warp's range lie.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_WALK_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_WALK_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/cuda_ptx.cuh"
#include "gpu/device_head.h"
#include "gpu/planes/format.h"
#include "gpu/unit_search.cuh"

namespace kvdepot::planes {

// A full segment has so many steps: where to look for a unit's run first.
inline constexpr uint32_t kRunSteps = kSegmentTokensMax / kBlockTokens / kStepBlocks;

// Walks over the blocks of a range of a cell's runs.
template <int kHeadDim>
class BlockWalk {
 public:
  // Of the run:
  const std::byte* part;
  uint32_t position;  // of the segment's token 0
  uint32_t first;     // its visible tokens are first .. end - 1
  uint32_t end;
  uint32_t token;        // the first of the first block that the range has of it
  uint32_t blocks_left;  // that the range has of it from here on; 0: the range ends here

  // Units [unit_begin, unit_end), not empty. The whole warp takes part.
  __device__ BlockWalk(const AttendCell& cell, uint32_t kv_head, uint32_t header_bytes,
                       uint32_t unit_begin, uint32_t unit_end, int lane)
      : steps_left_(unit_end - unit_begin),
        run_(cell.coded +
             RunAt(cell.coded, cell.coded_runs, unit_begin, unit_begin / kRunSteps, lane)),
        record_bytes_(Uniform(cell.heads[kv_head].record_bytes)),
        part_offset_(header_bytes + 2 * TableBytes(kHeadDim) * kv_head),
        record_bytes_before_(cell.heads[kv_head].record_bytes_before) {
    Enter(unit_begin - run_->unit_begin);
  }

  __device__ uint32_t record_bytes() const { return record_bytes_; }
  // Of the next block.
  __device__ const std::byte* record() const { return record_; }
  __device__ void NextBlock() {
    record_ += record_bytes_;
    if (--blocks_left == 0) NextRun();
  }
  __device__ void NextRun() {
    blocks_left = 0;
    if (steps_left_ == 0) return;
    ++run_;
    Enter(0);
  }

 private:
  __device__ void Enter(uint32_t skipped_steps) {
    const CodedRun run = *run_;
    part = run.segment + part_offset_ + static_cast<size_t>(record_bytes_before_) * run.blocks;
    position = run.position;
    first = Uniform(run.first);
    end = Uniform(run.first + run.count);
    const uint32_t block = Uniform(run.first_block) + kStepBlocks * skipped_steps;
    token = block * kBlockTokens;
    blocks_left = min((end + kBlockTokens - 1) / kBlockTokens - block, kStepBlocks * steps_left_);
    steps_left_ -= (blocks_left + kStepBlocks - 1) / kStepBlocks;
    record_ = part + 2 * TableBytes(kHeadDim) + block * record_bytes_;
  }

  uint32_t steps_left_;  // after the run
  const CodedRun* run_;
  uint32_t record_bytes_;
  size_t part_offset_;
  uint32_t record_bytes_before_;
  const std::byte* record_;
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_WALK_CUH_
