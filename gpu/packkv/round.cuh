// How lanes read rounds (gpu/FORMAT.md, "packkv"): packs of 16 tokens, codes of at most 4 bits.
//
// kLanes lanes share a round, each with as many channels that follow each other: 4, t = 0..3 of
// lanes 4 g + t, so that a warp reads eight rounds at once; or 8, g of the same, and four rounds.
// A lane finds where its parts begin by a sum over the round's lanes before it, and then reads
// channel after channel: nothing of a channel depends on another lane.
#ifndef KVDEPOT_GPU_PACKKV_ROUND_CUH_
#define KVDEPOT_GPU_PACKKV_ROUND_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/format.h"

namespace kvdepot::packkv {

inline constexpr int kRounds = kBlockTokens / kPackTokens;  // of a tile
inline constexpr int kKeyLanes = 4;                         // of a round of K
inline constexpr int kValueLanes = 8;                       // and of V
inline constexpr int kNibbleChannels = 8;                   // whose minima fill a word

// Of a round whose codes have so many bits.
KVDEPOT_HOST_DEVICE constexpr uint32_t RoundBytesMax(int head_dim, int code_bits) {
  return static_cast<uint32_t>(RoundHeaderBytes(head_dim, code_bits)) +
         2 * static_cast<uint32_t>(head_dim * code_bits);
}
// Bytes behind a tile that are read with it: minima are read in whole words.
inline constexpr uint32_t kTileSlackBytes = 32;
constexpr uint32_t TileBytesMax(int head_dim) {
  return kRounds * RoundBytesMax(head_dim, kNibbleCodeBits) + kTileSlackBytes;
}

// Where a round of a tile begins. `units`: of its rounds, as the directory has them.
__device__ __forceinline__ uint32_t RoundBegin(const uint2& units, int round) {
  uint32_t before = 0;
  if (round > 0) before += units.x & 0xFFFFu;
  if (round > 1) before += units.x >> 16;
  if (round > 2) before += units.y & 0xFFFFu;
  return kUnitBytes * before;
}
__device__ __forceinline__ uint32_t TileBytes(const uint2& units) {
  return kUnitBytes *
         ((units.x & 0xFFFFu) + (units.x >> 16) + (units.y & 0xFFFFu) + (units.y >> 16));
}

// A channel's codes: nibble i of `even` is that of token 2 i, of `odd` that of token 2 i + 1.
struct PackCodes {
  uint32_t even;
  uint32_t odd;
};

// What is the same for all rounds of a segment's K, or V, as a lane reads them.
template <int kHeadDim, int kLanes>
class RoundFormat {
 public:
  static constexpr int kChannels = kHeadDim / kLanes;

  __device__ RoundFormat(uint32_t code_bits, int lane)
      : code_bits_(code_bits), width_bits_(WidthCodeBits(static_cast<int>(code_bits))) {
    const uint32_t first = kChannels * (kLanes == kKeyLanes ? lane % 4 : lane / 4);
    minima_at_ = first * code_bits / 8;
    widths_at_ = (kHeadDim * code_bits + first) / 8;
    parts_at_ = static_cast<uint32_t>(RoundHeaderBytes(kHeadDim, static_cast<int>(code_bits)));
  }

 private:
  template <int, int, int>
  friend class LaneChannels;

  uint32_t code_bits_;
  int width_bits_;
  uint32_t minima_at_;
  uint32_t widths_at_;
  uint32_t parts_at_;
};

// A lane's channels of a round in shared memory, 16-byte aligned. Codes have at most kCodeBits
// bits: 3, which saves looking for second pairs, or 4.
template <int kHeadDim, int kLanes, int kCodeBits>
class LaneChannels {
 public:
  using Format = RoundFormat<kHeadDim, kLanes>;
  static constexpr int kChannels = Format::kChannels;

  // All lanes. Where the lane's own round begins.
  __device__ __forceinline__ void Begin(const Format& format, const std::byte* at, int lane) {
    ReadMinima(format, at + format.minima_at_);
    const std::byte* const widths = at + format.widths_at_;
    odd_ = format.width_bits_ > 0 ? Row(widths) : 0;
    pair_ = format.width_bits_ > 1 ? Row(widths + kHeadDim / 8) : 0;
    two_pairs_ = kCodeBits > 3 && format.width_bits_ > 2 ? Row(widths + 2 * kHeadDim / 8) : 0;
    pair_ |= two_pairs_;
    // Bytes of pairs, and of singles in the high half.
    const uint32_t own =
        4 * (__popc(pair_) + (kCodeBits > 3 ? __popc(two_pairs_) : 0)) + (__popc(odd_) << 17);
    uint32_t through = own;
    uint32_t all;
    if constexpr (kLanes == kKeyLanes) {
      ptx::AddFromLanesBefore(through, 1, 4);
      ptx::AddFromLanesBefore(through, 2, 4);
      all = __shfl_sync(kAllLanes, through, 3, 4);
    } else {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        ptx::AddFromLanesBefore(through, distance, 32);
      all = __shfl_sync(kAllLanes, through, 28 + lane % 4);
    }
    const uint32_t before = through - own;
    pairs_ = at + format.parts_at_ + (before & 0xFFFFu);
    singles_ = at + format.parts_at_ + (all & 0xFFFFu) + (before >> 16);
  }

  // Of the next kNibbleChannels channels, nibble i of channel i.
  __device__ __forceinline__ uint32_t NextMinima() {
    const uint32_t next = minima_[0];
#pragma unroll
    for (int i = 1; i < kChannels / kNibbleChannels; ++i) minima_[i - 1] = minima_[i];
    return next;
  }

  // Codes less minima, of channel `channel` of those that no Skip has left behind; channels in
  // turn.
  __device__ __forceinline__ PackCodes Next(int channel) {
    uint32_t single = 0;
    if ((odd_ >> channel & 1u) != 0) {
      single = *reinterpret_cast<const uint16_t*>(singles_);
      singles_ += 2;
    }
    single = (single | single << 15) & 0x55555555u;
    uint32_t low = single;
    uint32_t high = 0;
    if ((pair_ >> channel & 1u) != 0) {
      low = *reinterpret_cast<const uint32_t*>(pairs_);
      pairs_ += 4;
      high = single;
    }
    if (kCodeBits > 3 && (two_pairs_ >> channel & 1u) != 0) {
      high = *reinterpret_cast<const uint32_t*>(pairs_);
      pairs_ += 4;
    }
    return {ptx::SelectBits(0x33333333u, low, high << 2),
            ptx::SelectBits(0x33333333u, low >> 2, high)};
  }
  // Leaves channels behind that have been read.
  __device__ __forceinline__ void Skip(int channels) {
    odd_ >>= channels;
    pair_ >>= channels;
    two_pairs_ >>= channels;
  }
  // Leaves channels behind that have not, fewer than 32.
  __device__ __forceinline__ void SkipUnread(int channels) {
    const uint32_t own = (1u << channels) - 1;
    pairs_ += 4 * (__popc(pair_ & own) + (kCodeBits > 3 ? __popc(two_pairs_ & own) : 0));
    singles_ += 2 * __popc(odd_ & own);
    Skip(channels);
  }

 private:
  // Of code bits: fields of 8 channels are brought to nibbles.
  __device__ __forceinline__ void ReadMinima(const Format& format, const std::byte* at) {
    constexpr int kWords = kChannels / kNibbleChannels;
    const uint32_t bits = format.code_bits_;
    if (bits == kNibbleCodeBits) {
      if constexpr (kWords == 4) {
        const uint4 words = *reinterpret_cast<const uint4*>(at);
        minima_[0] = words.x, minima_[1] = words.y, minima_[2] = words.z, minima_[3] = words.w;
      } else if constexpr (kWords == 2) {
        const uint2 words = *reinterpret_cast<const uint2*>(at);
        minima_[0] = words.x, minima_[1] = words.y;
      } else {
        minima_[0] = *reinterpret_cast<const uint32_t*>(at);
      }
      return;
    }
    const uint32_t offset = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(at)) % 4;
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(at - offset);
    uint32_t window[kWords + 1];
#pragma unroll
    for (int i = 0; i <= kWords; ++i) window[i] = words[i];
    // The upper half of the fields, then those of each half, then of each byte.
    const uint32_t all = (1u << (8 * bits)) - 1;
    const uint32_t quarter = ((1u << (2 * bits)) - 1) << (2 * bits);
    const uint32_t eighth = ((1u << bits) - 1) << bits;
    uint32_t shift = 8 * offset;
#pragma unroll
    for (int group = 0; group < kWords; ++group) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) window[i] = __funnelshift_r(window[i], window[i + 1], shift);
      window[kWords] >>= shift;
      shift = 8 * bits;
      uint32_t fields = window[0] & all;
      fields += (fields >> (4 * bits) << (4 * bits)) * ((1u << (16 - 4 * bits)) - 1);
      fields += (fields & (quarter * 0x00010001u)) * ((1u << (8 - 2 * bits)) - 1);
      fields += (fields & (eighth * 0x01010101u)) * ((1u << (4 - bits)) - 1);
      minima_[group] = fields;
    }
  }

  // The lane's channels in a row of bits.
  static __device__ __forceinline__ uint32_t Row(const std::byte* row) {
    if constexpr (kChannels == 32) {
      return *reinterpret_cast<const uint32_t*>(row);
    } else if constexpr (kChannels == 16) {
      return *reinterpret_cast<const uint16_t*>(row);
    } else {
      static_assert(kChannels == 8, "see Row");
      return *reinterpret_cast<const uint8_t*>(row);
    }
  }

  uint32_t minima_[kChannels / kNibbleChannels];
  const std::byte* pairs_;
  const std::byte* singles_;
  // A bit a channel: its width is odd; at least 2; 4.
  uint32_t odd_;
  uint32_t pair_;
  uint32_t two_pairs_;
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ROUND_CUH_
