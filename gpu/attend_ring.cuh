// A warp's copies from device memory: pieces of one size through a ring, tables of `planes` to
// places of their own.
#ifndef KVDEPOT_GPU_ATTEND_RING_CUH_
#define KVDEPOT_GPU_ATTEND_RING_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/format.h"

namespace kvdepot {

// Copies that are under way. A barrier's phase is the parity of the copies that it has seen.
template <int kHeadDim>
class Ring {
 public:
  // `phases`: of a ring that used the same barriers before.
  __device__ Ring(const WarpMemory<kHeadDim>& memory, uint32_t ring_bytes, int lane,
                  uint32_t phases = 0)
      : memory_(memory),
        ring_bytes_(ring_bytes),
        is_leader_(lane == 0),
        policy_(ptx::EvictFirst()),
        phases_(phases) {}

  // Nothing is under way: pieces have at most `bytes` from now on, in up to `slots_max` slots.
  __device__ void Begin(uint32_t bytes, uint32_t slots_max = kRingSlotsMax) {
    slot_bytes_ = bytes;
    slots_ = min(ring_bytes_ / bytes, slots_max);
    load_ = 0;
    take_ = 0;
  }
  __device__ uint32_t slots() const { return slots_; }
  __device__ uint32_t bytes() const { return ring_bytes_; }
  // Nothing is under way when they are asked for, or set.
  __device__ uint32_t phases() const { return phases_; }
  __device__ void SetPhases(uint32_t phases) { phases_ = phases; }
  // Returns its place.
  __device__ std::byte* LoadPiece(const std::byte* piece, uint32_t bytes) {
    std::byte* const slot = memory_.ring + load_ * slot_bytes_;
    Load(slot, piece, bytes, load_);
    load_ = load_ + 1 == slots_ ? 0 : load_ + 1;
    return slot;
  }
  // A piece of several parts, each of which may be of no bytes: where it may lie, what all of it
  // has, its parts.
  __device__ std::byte* next_slot() const { return memory_.ring + load_ * slot_bytes_; }
  // What its leader wrote before is there with the parts.
  __device__ void ExpectParts(uint32_t bytes) {
    if (is_leader_) ptx::ExpectBytes(&memory_.barriers[load_], bytes);
  }
  __device__ void LoadPart(void* to, const void* from, uint32_t bytes) {
    if (is_leader_ && bytes > 0) ptx::BulkCopy(to, from, bytes, &memory_.barriers[load_], policy_);
  }
  __device__ void EndParts() { load_ = load_ + 1 == slots_ ? 0 : load_ + 1; }
  // The oldest piece, once it is there. Its place is free for another after a __syncwarp.
  __device__ const std::byte* WaitPiece() {
    Wait(take_);
    const std::byte* const piece = memory_.ring + take_ * slot_bytes_;
    take_ = take_ + 1 == slots_ ? 0 : take_ + 1;
    return piece;
  }
  __device__ void LoadKeyTable(const std::byte* part) {
    Load(memory_.k_table, part, kTableBytes, kKeyTableBarrier);
  }
  __device__ void WaitKeyTable() { Wait(kKeyTableBarrier); }
  __device__ void LoadValueTable(const std::byte* part) {
    Load(memory_.v_table, part + kTableBytes, kTableBytes, kValueTableBarrier);
  }
  __device__ void WaitValueTable() { Wait(kValueTableBarrier); }

 private:
  static constexpr uint32_t kTableBytes = static_cast<uint32_t>(planes::TableBytes(kHeadDim));

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
  uint32_t slot_bytes_ = 0;
  uint32_t slots_ = 0;
  uint32_t load_ = 0;  // slot of the next copy
  uint32_t take_ = 0;  // slot of the next piece to use
  uint32_t phases_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_RING_CUH_
