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
// One a slot, the K table's and the V table's.
inline constexpr int kWarpBarriers = kRingSlots + 2;
inline constexpr int kKeyTableBarrier = kRingSlots;
inline constexpr int kValueTableBarrier = kRingSlots + 1;

template <int kHeadDim>
struct WarpMemory {
  std::byte* slots;  // [kRingSlots][slot_bytes]
  std::byte* k_table;
  std::byte* v_table;
  float* q;            // [rows][kRowStride], by channel
  float* weights;      // [kExactChunkTokens][rows]
  uint8_t* place_of;   // [head_dim], of a channel of V
  uint64_t* barriers;  // [kWarpBarriers]
};

template <int kHeadDim, int kTiles>
class WarpMemoryLayout {
 public:
  static constexpr int kRows = 4 * kTiles;

  __host__ __device__ explicit WarpMemoryLayout(uint32_t slot_bytes) : slot_bytes_(slot_bytes) {}

  __host__ __device__ uint32_t bytes() const { return kRingSlots * slot_bytes_ + kFixedBytes; }

  __device__ WarpMemory<kHeadDim> Of(std::byte* warps, uint32_t warp) const {
    std::byte* at = warps + warp * bytes();
    WarpMemory<kHeadDim> memory;
    memory.slots = at;
    at += kRingSlots * slot_bytes_;
    memory.k_table = at;
    memory.v_table = at + kTableBytes;
    at += 2 * kTableBytes + 2 * kStateBytes;
    memory.q = reinterpret_cast<float*>(at);
    at += kStateBytes;
    memory.weights = reinterpret_cast<float*>(at);
    at += kWeightBytes;
    memory.place_of = reinterpret_cast<uint8_t*>(at);
    at += kHeadDim;
    memory.barriers = reinterpret_cast<uint64_t*>(at);
    return memory;
  }
  // Where the state of the warp's first row (0) or a later one (1) lies.
  __device__ float* partial(std::byte* warps, uint32_t warp, uint32_t place) const {
    return reinterpret_cast<float*>(warps + warp * bytes() + kRingSlots * slot_bytes_ +
                                    2 * kTableBytes + place * kStateBytes);
  }

 private:
  static constexpr uint32_t kTableBytes = static_cast<uint32_t>(planes::TableBytes(kHeadDim));
  static constexpr uint32_t kStateBytes = kRows * kRowStride<kHeadDim> * 4;
  static constexpr uint32_t kWeightBytes = kExactChunkTokens * kRows * 4;
  static constexpr uint32_t kFixedBytes =
      (2 * kTableBytes + 3 * kStateBytes + kWeightBytes + kHeadDim + 8 * kWarpBarriers + 127) /
      128 * 128;

  uint32_t slot_bytes_;
};

// Costs before each row, in front of the warps' memory.
__host__ __device__ constexpr uint32_t RowBeginBytes(uint32_t row_count) {
  return (4 * (row_count + 1) + 127) / 128 * 128;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_
