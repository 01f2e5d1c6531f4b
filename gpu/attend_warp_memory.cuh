// How a block's shared memory is divided among its warps.
#ifndef KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_
#define KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_row.cuh"
#include "gpu/packkv/format.h"
#include "gpu/planes/format.h"

namespace kvdepot {

// Records on their way or in use: a step's and the next at least.
inline constexpr int kRingSlotsMin = kStepBlocks + 1;
inline constexpr int kRingSlotsMax = 6;
// One a slot, the K table's and the V table's.
inline constexpr int kWarpBarriers = kRingSlotsMax + 2;
inline constexpr int kKeyTableBarrier = kRingSlotsMax;
inline constexpr int kValueTableBarrier = kRingSlotsMax + 1;

template <int kHeadDim>
struct WarpMemory {
  std::byte* ring;
  std::byte* k_table;
  std::byte* v_table;
  uint2* operand;  // [group][tile][lane], see planes/attend_products.cuh; or packkv::ValueOperand
  float4* sums;    // likewise; or a step's packkv::TokenTable
  float* q;        // [rows][kRowStride], by place of K, of fp32 exact tokens by channel
  float* state;    // see attend_state.cuh
  uint64_t* barriers;  // [kWarpBarriers]

  // While no sealed segment is read, the place of `operand` and `sums` is scratch for exact
  // tokens: weights, and in the end their state.
  __device__ float* exact() const { return reinterpret_cast<float*>(operand); }
};

// `kCodec`: of what is read beside exact tokens.
template <int kHeadDim, int kTiles, Codec kCodec>
class WarpMemoryLayout {
 public:
  static constexpr int kRows = 4 * kTiles;

  __host__ __device__ explicit WarpMemoryLayout(uint32_t ring_bytes) : ring_bytes_(ring_bytes) {}

  __host__ __device__ uint32_t bytes() const { return ring_bytes_ + kFixedBytes; }

  __device__ WarpMemory<kHeadDim> Of(std::byte* warps, uint32_t warp) const {
    std::byte* at = warps + warp * bytes();
    const auto take = [&](uint32_t bytes) {
      std::byte* const piece = at;
      at += bytes;
      return piece;
    };
    WarpMemory<kHeadDim> memory;
    memory.ring = take(ring_bytes_);
    memory.k_table = take(kTableBytes);
    memory.v_table = take(kTableBytes);
    memory.operand = reinterpret_cast<uint2*>(take(kOperandBytes));
    memory.sums = reinterpret_cast<float4*>(take(kSumsBytes));
    memory.q = reinterpret_cast<float*>(take(kStateBytes));
    memory.state = reinterpret_cast<float*>(take(kStateBytes));
    memory.barriers = reinterpret_cast<uint64_t*>(at);
    return memory;
  }

 private:
  static constexpr bool kIsPlanes = kCodec == Codec::kPlanes;
  static constexpr uint32_t kTableBytes =
      kIsPlanes ? static_cast<uint32_t>(planes::TableBytes(kHeadDim)) : 0;
  static constexpr uint32_t kStateBytes = kRows * kRowStride<kHeadDim> * 4;
  static constexpr uint32_t kOperandBytes =
      kIsPlanes ? kTiles * kHeadDim * sizeof(uint2) : packkv::kValueOperandBytes;
  static constexpr uint32_t kSumsBytes =
      kIsPlanes ? 2 * kOperandBytes : kStepBlocks * sizeof(packkv::TokenTable);
  static constexpr uint32_t kFixedBytes =
      2 * kTableBytes + kOperandBytes + kSumsBytes + 2 * kStateBytes + 8 * kWarpBarriers;
  static_assert(kFixedBytes % 16 == 0, "copies begin at 16 bytes");
  static_assert(kStateBytes <= kOperandBytes + kSumsBytes &&
                    4 * kExactChunkTokens * kRows <= kStateBytes,
                "scratch for exact tokens fits");

  uint32_t ring_bytes_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_WARP_MEMORY_CUH_
