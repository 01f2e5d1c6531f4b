// How a block's shared memory is divided among its warps.
#ifndef KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_
#define KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_row.cuh"
#include "gpu/planes/format.h"

namespace kvdepot {

// Records on their way or in use.
inline constexpr int kRingSlots = 2;
// One a slot, the K table's, the V table's and the head's.
inline constexpr int kWarpBarriers = kRingSlots + 3;
inline constexpr int kKeyTableBarrier = kRingSlots;
inline constexpr int kValueTableBarrier = kRingSlots + 1;
inline constexpr int kHeadBarrier = kRingSlots + 2;

template <int kHeadDim>
struct WarpMemory {
  std::byte* ring;
  std::byte* k_table;
  std::byte* v_table;
  DeviceHead* head;
  uint2* operand;      // [group][tile][lane], see planes/attend_cuda.cuh
  float4* sums;        // likewise
  float* q;            // [rows][kRowStride], by channel
  float* weights;      // [kExactChunkTokens][rows]
  uint8_t* place_of;   // [head_dim], of a channel of V
  uint64_t* barriers;  // [kWarpBarriers]
};

template <int kHeadDim, int kTiles>
class WarpMemoryLayout {
 public:
  static constexpr int kRows = 4 * kTiles;

  __host__ __device__ explicit WarpMemoryLayout(uint32_t ring_bytes) : ring_bytes_(ring_bytes) {}

  __host__ __device__ uint32_t bytes() const { return ring_bytes_ + kFixedBytes; }

  __device__ WarpMemory<kHeadDim> Of(std::byte* warps, uint32_t warp) const {
    std::byte* at = warps + warp * bytes();
    WarpMemory<kHeadDim> memory;
    memory.ring = at;
    at += ring_bytes_;
    memory.k_table = at;
    memory.v_table = at + kTableBytes;
    memory.head = reinterpret_cast<DeviceHead*>(at + 2 * kTableBytes);
    at += 2 * kTableBytes + sizeof(DeviceHead) + 2 * kStateBytes;
    memory.q = reinterpret_cast<float*>(at);
    at += kStateBytes;
    memory.operand = reinterpret_cast<uint2*>(at);
    at += kOperandBytes;
    memory.sums = reinterpret_cast<float4*>(at);
    at += 2 * kOperandBytes;
    memory.weights = reinterpret_cast<float*>(at);
    at += kWeightBytes;
    memory.place_of = reinterpret_cast<uint8_t*>(at);
    at += kHeadDim;
    memory.barriers = reinterpret_cast<uint64_t*>(at);
    return memory;
  }
  // Where the state of the warp's first row (0) or a later one (1) lies.
  __device__ float* state(std::byte* warps, uint32_t warp, uint32_t place) const {
    return reinterpret_cast<float*>(warps + warp * bytes() + ring_bytes_ + 2 * kTableBytes +
                                    sizeof(DeviceHead) + place * kStateBytes);
  }

 private:
  static constexpr uint32_t kTableBytes = static_cast<uint32_t>(planes::TableBytes(kHeadDim));
  static constexpr uint32_t kStateBytes = kRows * kRowStride<kHeadDim> * 4;
  static constexpr uint32_t kOperandBytes = kTiles * kHeadDim * sizeof(uint2);
  static constexpr uint32_t kWeightBytes = kExactChunkTokens * kRows * 4;
  static constexpr uint32_t kFixedBytes =
      (2 * kTableBytes + sizeof(DeviceHead) + 3 * kStateBytes + 3 * kOperandBytes + kWeightBytes +
       kHeadDim + 8 * kWarpBarriers + 127) /
      128 * 128;

  uint32_t ring_bytes_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_
