// What one thread block of the encoder holds: whole blocks of K or V of one head, 512 channels of
// 64 tokens in all, and what is known of them. A cluster of such thread blocks holds a segment's
// K or V of one head.
#ifndef KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_
#define KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/load_values.cuh"
#include "gpu/planes/division.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int kEncodeWarps = 8;
inline constexpr int kEncodeThreads = 32 * kEncodeWarps;

template <DType kDTypeOfTile, int kHeadDimOfTile>
struct Tile {
  static constexpr DType kDType = kDTypeOfTile;
  static constexpr int kHeadDim = kHeadDimOfTile;
  static constexpr int kBlocks = 512 / kHeadDim;
  static constexpr int kTokens = kBlocks * kBlockTokens;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(DTypeBytes(kDType));
  static constexpr int kBlockBytes = kBlockTokens * kRowBytes;
  // A warp's share of a block: 64 channels.
  static constexpr int kWarpsPerBlock = kEncodeWarps / kBlocks;
  static constexpr int kRanksMax = kSegmentTokensMax / kTokens;

  // Shared memory. Three sets of block sums, since other thread blocks may still read one when the
  // next is written.
  struct Shared {
    alignas(128) std::byte values[kBlocks][kBlockBytes];
    float block_sums[3][kBlocks * kHeadDim];
    // Of each token: the rounded scale's bits in `high` first, then the reciprocal of the scale.
    Reciprocal token_scale[kTokens];
    float centre[kHeadDim];  // by channel
    // By channel: deviation and about its reciprocal; later by place: the reciprocal of the step.
    float deviation_or_step[kHeadDim];
    float inverse_or_rest[kHeadDim];
    uint64_t loaded[kBlocks];
    uint32_t largest_rounded;
    uint32_t largest_stored;
    uint8_t order[kHeadDim];
  };
};

// Which blocks of the segment this thread block holds, and its thread's share of the work.
struct TilePart {
  uint32_t block_count;  // of the segment
  uint32_t rank;
  uint32_t ranks;  // thread blocks that hold any block
  int blocks;      // held here
  float token_count;

  __device__ int tokens() const { return blocks * kBlockTokens; }
};

template <class T>
__device__ __forceinline__ const std::byte* RowOf(const typename T::Shared& shared, int token) {
  return shared.values[0] + token * T::kRowBytes;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_
