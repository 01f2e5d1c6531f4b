// How a warp reads rounds (gpu/FORMAT.md, "packkv"): packs of 16 tokens, codes of at most 4 bits.
//
// Each lane owns four channels that follow each other; the 32 lanes together read one round of
// head_dim 128, or two of 64. A lane finds its channels' parts of the planes by a sum over the
// lanes before it, and brings a channel's 16 codes into two words of nibbles: token t is nibble t %
// 8 of word t / 8.
#ifndef KVDEPOT_GPU_PACKKV_ROUND_CUH_
#define KVDEPOT_GPU_PACKKV_ROUND_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/format.h"

namespace kvdepot::packkv {

inline constexpr int kRounds = kBlockTokens / kPackTokens;  // of a tile
inline constexpr int kLaneChannels = 4;

template <int kHeadDim>
inline constexpr int kRoundLanes = kHeadDim / kLaneChannels;
template <int kHeadDim>
inline constexpr int kRoundsAtOnce = 32 / kRoundLanes<kHeadDim>;

// Of a round whose codes have so many bits.
KVDEPOT_HOST_DEVICE constexpr uint32_t RoundBytesMax(int head_dim, int code_bits) {
  return static_cast<uint32_t>(RoundHeaderBytes(head_dim, code_bits)) +
         2 * static_cast<uint32_t>(head_dim * code_bits);
}

// Codes of a lane's channels.
using Nibbles = uint32_t[kLaneChannels][2];

// What is the same for all rounds of a segment's K, or V, as a lane reads them. Codes have at most
// kCodeBits bits: 3, which saves looking for planes of four, or 4.
template <int kHeadDim, int kCodeBits>
class RoundFormat {
 public:
  __device__ RoundFormat(uint32_t code_bits, int lane)
      : code_bits_(code_bits), width_bits_(WidthCodeBits(static_cast<int>(code_bits))) {
    const uint32_t of_round = lane % kRoundLanes<kHeadDim>;
    const uint32_t minima_bit = kLaneChannels * code_bits_ * of_round;
    const uint32_t widths_bit = kHeadDim * code_bits_ + kLaneChannels * width_bits_ * of_round;
    minima_at_ = minima_bit / 32 * 4;
    minima_shift_ = minima_bit % 32;
    widths_at_ = widths_bit / 32 * 4;
    widths_shift_ = widths_bit % 32;
    planes_at_ = static_cast<uint32_t>(RoundHeaderBytes(kHeadDim, static_cast<int>(code_bits)));
    lowest_ = 0;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) lowest_ |= 1u << (width_bits_ * c);
    // Without widths everything is absent.
    if (width_bits_ == 0) lowest_ = 0;
  }

 private:
  template <int, int>
  friend class Round;

  // Of a lane's widths: the bits that say which channels have a part of the plane of 2^plane bits.
  __device__ uint32_t Have(int plane) const { return plane < width_bits_ ? lowest_ << plane : 0; }

  uint32_t code_bits_;
  uint32_t width_bits_;
  uint32_t minima_at_, minima_shift_;
  uint32_t widths_at_, widths_shift_;
  uint32_t planes_at_;
  uint32_t lowest_;
};

// A round in shared memory, 16-byte aligned, as the lanes that read it see it; a word behind it may
// be read.
template <int kHeadDim, int kCodeBits>
class Round {
 public:
  // Steps: Begin, AddLanes with 1, 2, 4 and so on below kRoundLanes, End, Read. Apart, so that
  // those of several rounds go on together.
  __device__ __forceinline__ void Begin(const RoundFormat<kHeadDim, kCodeBits>& format,
                                        const std::byte* at) {
    at_ = at;
    minima_ = Field(at + format.minima_at_, format.minima_shift_);
    widths_ = Field(at + format.widths_at_, format.widths_shift_);
    own_ = 2 * __popc(widths_ & format.Have(0)) +
           (4 << kTwosAt) * __popc(widths_ & format.Have(1)) +
           (8 << kFoursAt) * __popc(widths_ & format.Have(2));
    through_ = own_;
  }
  __device__ __forceinline__ void AddLanes(int distance) {
    ptx::AddFromLanesBefore(through_, distance, kRoundLanes<kHeadDim>);
  }
  __device__ __forceinline__ void End(const RoundFormat<kHeadDim, kCodeBits>& format) {
    const uint32_t all =
        __shfl_sync(kAllLanes, through_, kRoundLanes<kHeadDim> - 1, kRoundLanes<kHeadDim>);
    const uint32_t before = through_ - own_;
    fours_ = at_ + format.planes_at_ + (before >> kFoursAt);
    const std::byte* const twos = at_ + format.planes_at_ + (all >> kFoursAt);
    twos_ = twos + (before >> kTwosAt & kTwosMask);
    ones_ = twos + (all >> kTwosAt & kTwosMask) + (before & kOnesMask);
  }
  __device__ __forceinline__ void Read(const RoundFormat<kHeadDim, kCodeBits>& format,
                                       Nibbles& nibbles) const {
    const std::byte* fours = fours_;
    const std::byte* twos = twos_;
    const std::byte* ones = ones_;
    const uint32_t code_mask = (1u << format.code_bits_) - 1;
    const uint32_t width_mask = (1u << format.width_bits_) - 1;
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) {
      const uint32_t least = minima_ >> (format.code_bits_ * c) & code_mask;
      const uint32_t width = widths_ >> (format.width_bits_ * c) & width_mask;
      uint2 four = {0, 0};
      uint32_t two = 0;
      uint32_t one = 0;
      uint32_t one_is = 1;
      if (kCodeBits > 3 && (width & 4u) != 0) {
        four = *reinterpret_cast<const uint2*>(fours);
        fours += 8;
      }
      if ((width & 2u) != 0) {
        two = *reinterpret_cast<const uint32_t*>(twos);
        twos += 4;
        one_is = 4;
      }
      if ((width & 1u) != 0) {
        one = *reinterpret_cast<const uint16_t*>(ones);
        ones += 2;
      }
      nibbles[c][0] = ((one | one << 14) & 0x11111111u) * one_is +
                      (least * 0x11111111u + (four.x | (two & 0x33333333u)));
      nibbles[c][1] = ((one >> 1 | one << 13) & 0x11111111u) * one_is +
                      (least * 0x11111111u + (four.y | (two >> 2 & 0x33333333u)));
    }
  }

 private:
  // Sums of lanes: bytes of the planes of one bit, two and four, at most 256, 512 and 1024.
  static constexpr uint32_t kTwosAt = 9;
  static constexpr uint32_t kFoursAt = 19;
  static constexpr uint32_t kOnesMask = (1u << kTwosAt) - 1;
  static constexpr uint32_t kTwosMask = (1u << (kFoursAt - kTwosAt)) - 1;

  static __device__ __forceinline__ uint32_t Field(const std::byte* word, uint32_t shift) {
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(word);
    return __funnelshift_r(words[0], words[1], shift);
  }

  const std::byte* at_;
  uint32_t minima_;
  uint32_t widths_;
  uint32_t own_;      // of the lane's channels
  uint32_t through_;  // and of those of the lanes before
  const std::byte* fours_;
  const std::byte* twos_;
  const std::byte* ones_;
};

// Brings rounds, round i at at[i], up to Round::End: kRoundsAtOnce of them, one after the other,
// are read in a pass, and rounds[pass] is the lane's.
template <int kHeadDim, int kCodeBits, int kCount>
__device__ __forceinline__ void BeginRounds(
    const RoundFormat<kHeadDim, kCodeBits>& format, const std::byte* const (&at)[kCount], int lane,
    Round<kHeadDim, kCodeBits> (&rounds)[kCount / kRoundsAtOnce<kHeadDim>]) {
  constexpr int kAtOnce = kRoundsAtOnce<kHeadDim>;
  constexpr int kPasses = kCount / kAtOnce;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const std::byte* mine = at[kAtOnce * pass];
#pragma unroll
    for (int i = 1; i < kAtOnce; ++i)
      if (lane / kRoundLanes<kHeadDim> == i) mine = at[kAtOnce * pass + i];
    rounds[pass].Begin(format, mine);
  }
#pragma unroll
  for (int distance = 1; distance < kRoundLanes<kHeadDim>; distance *= 2) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) rounds[pass].AddLanes(distance);
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) rounds[pass].End(format);
}

// Where rounds lie that follow each other from `first` on; `units`: of each.
template <int kCount>
__device__ __forceinline__ void FindRounds(const std::byte* first, const uint16_t (&units)[kCount],
                                           const std::byte* (&at)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    at[i] = first;
    first += kUnitBytes * units[i];
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ROUND_CUH_
