// What one thread block of the encoder holds: whole blocks of K or V of one head, 512 channels of
// 64 tokens in all, and what is known of them. A cluster of such thread blocks holds a segment's
// K or V of one head.
//
// Sums over the segment: channels fall into slices of 32, each with an owner among the thread
// blocks. Everybody sends its block sums to the owners; they add them up in order, compute what the
// channel needs and send it to everybody.
#ifndef KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_
#define KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/load_values.cuh"
#include "gpu/planes/division.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

inline constexpr int kEncodeWarps = 8;
inline constexpr int kEncodeThreads = 32 * kEncodeWarps;
inline constexpr int kSliceChannels = 32;

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
  static constexpr int kSlices = kHeadDim / kSliceChannels;

  // Sums that an owner receives at a time, at most.
  static constexpr int SumsMax() {
    int most = 0;
    for (int ranks = 1; ranks <= kRanksMax; ++ranks) {
      const int slices = (kSlices + ranks - 1) / ranks;
      const int sums = slices * ranks * kBlocks * kSliceChannels;
      if (sums > most) most = sums;
    }
    return most;
  }

  struct Shared {
    alignas(128) std::byte values[kBlocks][kBlockBytes];
    // For the owner of slices: [own slice][block of the segment][channel of the slice]. The sums of
    // the next kind come only after all owners have sent what they made of these.
    alignas(8) float sums[SumsMax()];
    // Of each token: the rounded scale's bits in `high` first, then the reciprocal of the scale.
    Reciprocal token_scale[kTokens];
    float centre[kHeadDim];  // by channel
    // By channel: deviation and about its reciprocal; later by place: the reciprocal of the step.
    float deviation_or_step[kHeadDim];
    float inverse_or_rest[kHeadDim];
    uint32_t largest_of_rank[kRanksMax];  // rounded token scales
    uint32_t stored_of_slice[kSlices];    // see StoredSummary
    uint32_t largest_rounded;
    uint8_t order[kHeadDim];
    uint8_t place_of[kHeadDim];  // the inverse
    uint64_t loaded[kBlocks];
    // Sums and results of steps 1, 2 and 5.
    uint64_t sums_received[3];
    uint64_t results_received[3];
    uint64_t largest_received;
  };
};

// Which blocks of the segment this thread block holds.
struct TilePart {
  uint32_t block_count;  // of the segment
  uint32_t rank;
  uint32_t ranks;  // thread blocks that hold any block
  int blocks;      // held here
  float token_count;

  __device__ int tokens() const { return blocks * kBlockTokens; }
  // Slices are dealt out in turn: owner of slice i, its number among the owner's, and back.
  __device__ uint32_t OwnerOf(uint32_t slice) const { return slice % ranks; }
  __device__ uint32_t OwnNumberOf(uint32_t slice) const { return slice / ranks; }
  __device__ uint32_t SliceOf(uint32_t own_number) const { return own_number * ranks + rank; }
};

template <class T>
__device__ __forceinline__ const std::byte* RowOf(const typename T::Shared& shared, int token) {
  return shared.values[0] + token * T::kRowBytes;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_TILE_CUH_
