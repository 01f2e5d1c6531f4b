// Steps of `packkv` tokens, two blocks each, on their way to the kernels of packkv_products_cuda.h.
#ifndef KVDEPOT_TESTS_BENCH_PACKKV_STEPS_CUH_
#define KVDEPOT_TESTS_BENCH_PACKKV_STEPS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/round.cuh"
#include "tests/bench/packkv_products_cuda.h"

namespace kvdepot {

inline constexpr uint32_t kStepBlocks = 2;
inline constexpr uint32_t kStepTokens = kStepBlocks * kBlockTokens;
inline constexpr uint32_t kSegmentSteps = kSegmentTokensMax / kStepTokens;
inline constexpr uint32_t kTablesBytes = kStepBlocks * sizeof(packkv::TokenTable);

// Of a step: what the directory says of its rounds, tables, tiles.
__host__ __device__ constexpr uint32_t SlotBytes(uint32_t tile_bytes) {
  return sizeof(uint4) + kTablesBytes + kStepBlocks * tile_bytes + packkv::kTileSlackBytes;
}

// A step in shared memory.
struct Step {
  const std::byte* slot;
  uint2 units[kStepBlocks];

  __device__ __forceinline__ explicit Step(const std::byte* at) : slot(at) {
    const uint4 words = *reinterpret_cast<const uint4*>(at);
    units[0] = {words.x, words.y};
    units[1] = {words.z, words.w};
  }
  __device__ __forceinline__ const packkv::TokenTable& table(int block) const {
    return reinterpret_cast<const packkv::TokenTable*>(slot + sizeof(uint4))[block];
  }
  __device__ __forceinline__ const std::byte* Round(int block, int round) const {
    const std::byte* const tiles = slot + sizeof(uint4) + kTablesBytes;
    return tiles + (block == 0 ? 0 : packkv::TileBytes(units[0])) +
           packkv::RoundBegin(
               {block == 0 ? units[0].x : units[1].x, block == 0 ? units[0].y : units[1].y}, round);
  }
};

// A head's steps index, index + stride, ... on their way through one place, K's or V's.
template <bool kIsValue>
class Steps {
 public:
  // `is_leader`: of the one thread that asks for them.
  __device__ Steps(const PackKvTokens& of, uint32_t head, uint32_t index, uint32_t stride,
                   std::byte* slot, uint64_t* barrier, bool is_leader)
      : of_(of),
        head_(head),
        stride_(stride),
        count_(of.tokens / kStepTokens),
        slot_(slot),
        barrier_(barrier),
        is_leader_(is_leader),
        policy_(ptx::EvictFirst()),
        ahead_(index),
        index_(index) {
    body_ = Body();
    Look();
    Load();
  }
  __device__ bool has() const { return index_ < count_; }
  __device__ uint32_t index() const { return index_; }
  // The step, once it is there.
  __device__ __forceinline__ Step Wait() {
    ptx::BarrierWait(barrier_, phase_);
    phase_ ^= 1;
    return Step(slot_);
  }
  // Nobody reads it any more.
  __device__ __forceinline__ void Next() {
    Load();
    index_ += stride_;
  }

 private:
  __device__ __forceinline__ const std::byte* Body() const {
    return ahead_ < count_ ? of_.bodies[ahead_ / kSegmentSteps] : nullptr;
  }
  // Each of the loads that follow from each other is made a step ahead of the next.
  __device__ __forceinline__ void Look() {
    looks_ = ahead_ < count_;
    if (looks_) {
      const uint32_t block = ahead_ % kSegmentSteps * kStepBlocks;
      tables_ = body_ + packkv::TokenTableAt(static_cast<int>(block));
      looked_at_ = body_;
#pragma unroll
      for (uint32_t i = 0; i < kStepBlocks; ++i) {
        const std::byte* const entry =
            body_ + packkv::DirectoryAt(kSegmentTokensMax / kBlockTokens) +
            ((block + i) * of_.kv_heads + head_) * packkv::EntryBytes(packkv::kPackTokens);
        begins_[i] = reinterpret_cast<const uint32_t*>(entry)[kIsValue ? 1 : 0];
        units_[i] = *reinterpret_cast<const uint2*>(
            entry + packkv::EntryUnitsAt(!kIsValue, packkv::kPackTokens));
      }
    }
    ahead_ += stride_;
    body_ = Body();
  }
  __device__ __forceinline__ void Load() {
    if (!looks_) return;
    if (is_leader_) {
      *reinterpret_cast<uint4*>(slot_) = {units_[0].x, units_[0].y, units_[1].x, units_[1].y};
      const uint32_t first = packkv::TileBytes(units_[0]);
      const uint32_t second = packkv::TileBytes(units_[1]);
      ptx::ExpectBytes(barrier_, kTablesBytes + first + second);
      std::byte* to = slot_ + sizeof(uint4);
      ptx::BulkCopy(to, tables_, kTablesBytes, barrier_, policy_);
      to += kTablesBytes;
      ptx::BulkCopy(to, looked_at_ + packkv::kUnitBytes * begins_[0], first, barrier_, policy_);
      ptx::BulkCopy(to + first, looked_at_ + packkv::kUnitBytes * begins_[1], second, barrier_,
                    policy_);
    }
    Look();
  }

  const PackKvTokens& of_;
  const uint32_t head_;
  const uint32_t stride_;
  const uint32_t count_;
  std::byte* const slot_;
  uint64_t* const barrier_;
  const bool is_leader_;
  const uint64_t policy_;
  uint32_t ahead_;
  uint32_t index_;
  const std::byte* body_;  // of step `ahead_`
  bool looks_ = false;
  const std::byte* looked_at_;
  const std::byte* tables_;
  uint32_t begins_[kStepBlocks];
  uint2 units_[kStepBlocks];
  uint32_t phase_ = 0;
};

// A step and a zero point of kCount places that follow each other, and their tokens.
template <int kCount>
struct Places {
  float scale[kCount];
  float zero[kCount];
  uint32_t token[kCount];

  __device__ __forceinline__ Places(const packkv::TokenTable& table, bool is_value, int place) {
    const uint16_t* const scales = (is_value ? table.v_scale : table.k_scale) + place;
    const int16_t* const zeros = (is_value ? table.v_zero : table.k_zero) + place;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 four = *reinterpret_cast<const uint2*>(scales + i);
      const uint2 four_zeros = *reinterpret_cast<const uint2*>(zeros + i);
      const uint32_t order = *reinterpret_cast<const uint32_t*>(table.order + place + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t two = k < 2 ? four.x : four.y;
        const uint32_t two_zeros = k < 2 ? four_zeros.x : four_zeros.y;
        scale[i + k] = __uint_as_float(k % 2 == 0 ? two << 16 : two & 0xFFFF0000u);
        zero[i + k] = static_cast<float>(
            static_cast<int32_t>(k % 2 == 0 ? two_zeros << 16 : two_zeros) >> 16);
        token[i + k] = order >> (8 * k) & 0xFFu;
      }
    }
  }
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_BENCH_PACKKV_STEPS_CUH_
