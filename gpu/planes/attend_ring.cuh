// A warp's copies from device memory: records through a ring, tables to places of their own.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_RING_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_RING_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/format.h"

namespace kvdepot::planes {

// Copies that are under way. A barrier's phase is the parity of the copies that it has seen.
template <int kHeadDim>
class Ring {
 public:
  __device__ Ring(const WarpMemory<kHeadDim>& memory, uint32_t ring_bytes, int lane)
      : memory_(memory),
        ring_bytes_(ring_bytes),
        is_leader_(lane == 0),
        policy_(ptx::EvictFirst()) {}

  // Nothing is under way: records have `bytes` from now on.
  __device__ void Begin(uint32_t bytes) {
    record_bytes_ = bytes;
    slots_ = min(ring_bytes_ / bytes, static_cast<uint32_t>(kRingSlotsMax));
    load_ = 0;
    take_ = 0;
  }
  __device__ uint32_t slots() const { return slots_; }
  __device__ void LoadRecord(const std::byte* record) {
    Load(memory_.ring + load_ * record_bytes_, record, record_bytes_, load_);
    load_ = load_ + 1 == slots_ ? 0 : load_ + 1;
  }
  __device__ const std::byte* WaitRecord() {
    Wait(take_);
    const std::byte* const record = memory_.ring + take_ * record_bytes_;
    take_ = take_ + 1 == slots_ ? 0 : take_ + 1;
    return record;
  }
  __device__ void LoadKeyTable(const std::byte* part) {
    Load(memory_.k_table, part, TableBytes(kHeadDim), kKeyTableBarrier);
  }
  __device__ void WaitKeyTable() { Wait(kKeyTableBarrier); }
  __device__ void LoadValueTable(const std::byte* part) {
    Load(memory_.v_table, part + TableBytes(kHeadDim), TableBytes(kHeadDim), kValueTableBarrier);
  }
  __device__ void WaitValueTable() { Wait(kValueTableBarrier); }

 private:
  __device__ void Load(void* to, const void* from, uint32_t bytes, uint32_t barrier) {
    if (is_leader_) ptx::BulkLoad(to, from, bytes, &memory_.barriers[barrier], policy_);
  }
  __device__ void Wait(uint32_t barrier) {
    ptx::BarrierWait(&memory_.barriers[barrier], phases_ >> barrier & 1u);
    phases_ ^= 1u << barrier;
  }

  const WarpMemory<kHeadDim> memory_;
  const uint32_t ring_bytes_;
  const bool is_leader_;
  const uint64_t policy_;
  uint32_t record_bytes_ = 0;
  uint32_t slots_ = 0;
  uint32_t load_ = 0;  // slot of the next copy
  uint32_t take_ = 0;  // slot of the next record to use
  uint32_t phases_ = 0;
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_RING_CUH_
