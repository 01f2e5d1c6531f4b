// Products of codes by tensor cores: of K with queries, of V with weights.
//
// Both factors are bytes, the other one two of them, a high part and a low one: in columns 2 r and
// 2 r + 1 of row r, of up to four rows. Codes change lanes through shared memory. Sums are exact.
#ifndef KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_
#define KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/round.cuh"

namespace kvdepot::packkv {

inline constexpr int kProductRows = 4;
// Queries are integers of at most this, so that the high byte stays signed after rounding.
inline constexpr float kQueryMax = 32512.0f;
// Weights are integers of at most this. A weight plus the bias is rounded to one, in the low 16
// bits.
inline constexpr float kWeightMax = 65535.0f;
inline constexpr float kWeightBias = 8388608.0f;

static_assert(kExchangeBytes == 32 * sizeof(Nibbles), "codes of all lanes");

// Queries as operand B, in registers.
template <int kHeadDim>
struct KeyOperand {
  static constexpr int kSteps = kHeadDim / 32;
  uint32_t words[kSteps][2];

  // Row r's channels are at q + r * stride, 16-byte aligned, of magnitudes up to kQueryMax. Lane
  // 4 g + t.
  __device__ __forceinline__ void Make(const float* q, int stride, int lane) {
    const float* const row = q + lane / 8 * stride;
    // Of the words whose bytes are the high parts and, top bits flipped, the low parts.
    const uint32_t bytes = lane / 4 % 2 == 0 ? 0x51 : 0x40;
    const uint32_t flipped = lane / 4 % 2 == 0 ? 0 : 0x80808080u;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float4 four = reinterpret_cast<const float4*>(row)[8 * i + 4 * h + lane % 4];
        const uint32_t first = __byte_perm(Biased(four.x), Biased(four.y), bytes);
        const uint32_t second = __byte_perm(Biased(four.z), Biased(four.w), bytes);
        words[i][h] = __byte_perm(first, second, 0x5410) ^ flipped;
      }
    }
  }

 private:
  // 1.5 * 2^23 + 128: the low 16 bits are value + 128.
  static __device__ __forceinline__ uint32_t Biased(float value) {
    return __float_as_uint(value + 12583040.0f);
  }
};

// Sums of code * query over the channels of a pass's rounds, for lane 4 g + t of tokens 2 g and
// 2 g + 1 of each round and row t: the second's sixteenfold.
template <int kHeadDim>
struct KeySums {
  int32_t of[kRoundsAtOnce<kHeadDim>][2];

  // `exchange`: kExchangeBytes of shared memory, which no lane reads any more.
  __device__ __forceinline__ void Make(const Nibbles& nibbles, const KeyOperand<kHeadDim>& queries,
                                       std::byte* exchange, int lane) {
    // Word g: codes of tokens 2 g and 2 g + 1, a byte a channel.
    uint4* const to = reinterpret_cast<uint4*>(exchange) + 2 * lane;
    const int flip = lane / 4 % 2;
    to[flip] = Transpose(nibbles[0][0], nibbles[1][0], nibbles[2][0], nibbles[3][0]);
    to[flip ^ 1] = Transpose(nibbles[0][1], nibbles[1][1], nibbles[2][1], nibbles[3][1]);
    __syncwarp();
    const int g = lane / 4;
    const uint32_t* const words = reinterpret_cast<const uint32_t*>(exchange) + 8 * (lane % 4);
#pragma unroll
    for (int round = 0; round < kRoundsAtOnce<kHeadDim>; ++round) {
      int32_t sums[4] = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < KeyOperand<kHeadDim>::kSteps; ++i) {
        const uint32_t* const from = words + 64 * (round * KeyOperand<kHeadDim>::kSteps + i);
        const uint32_t low = from[g];
        const uint32_t high = from[32 + (g ^ 4)];
        ptx::MmaSigned(sums, low & 0x0F0F0F0Fu, low, high & 0x0F0F0F0Fu, high, queries.words[i][0],
                       queries.words[i][1]);
      }
      of[round][0] = 256 * sums[0] + sums[1];
      // Of both tokens' codes, less the first's.
      of[round][1] = 256 * sums[2] + sums[3] - of[round][0];
    }
  }

 private:
  // Word i: byte i of each.
  static __device__ __forceinline__ uint4 Transpose(uint32_t a, uint32_t b, uint32_t c,
                                                    uint32_t d) {
    const uint32_t ab_low = __byte_perm(a, b, 0x5140);
    const uint32_t cd_low = __byte_perm(c, d, 0x5140);
    const uint32_t ab_high = __byte_perm(a, b, 0x7362);
    const uint32_t cd_high = __byte_perm(c, d, 0x7362);
    return {__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
            __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632)};
  }
};

// Weights of a round's tokens as operand B: lane 4 g + t brings those of tokens 2 g and 2 g + 1 of
// row t, from 0 to kWeightMax, plus kWeightBias.
__device__ __forceinline__ uint32_t ValueOperand(float first, float second) {
  const uint32_t two = __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x4051);
  // Tokens 4 t, 4 t + 2, 4 t + 1 and 4 t + 3 of column g.
  return __byte_perm(ptx::Transpose8x8(two), 0, 0x3120);
}

// Sums of weight * code over tokens, of row t for lane 4 g + t: high and low part apart. At most
// kValueBlocksMax blocks of tokens are added before they are taken.
inline constexpr int kValueBlocksMax = 8192;
template <int kHeadDim>
class ValueSums {
 public:
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums_[i][k] = 0;
    }
  }

  // Two rounds that follow each other; `nibbles` of the passes that read them. `exchange`:
  // kExchangeBytes a pass.
  __device__ __forceinline__ void Add(const Nibbles (&nibbles)[2 / kRoundsAtOnce<kHeadDim>],
                                      const uint32_t (&weights)[2], std::byte* exchange, int lane) {
#pragma unroll
    for (int pass = 0; pass < 2 / kRoundsAtOnce<kHeadDim>; ++pass) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        reinterpret_cast<uint4*>(exchange)[64 * pass + 32 * m + lane] = {
            nibbles[pass][2 * m][0], nibbles[pass][2 * m][1], nibbles[pass][2 * m + 1][0],
            nibbles[pass][2 * m + 1][1]};
      }
    }
    __syncwarp();
    // Four codes of a row of 8 bytes.
    const std::byte* const from = exchange + 8 * (lane / 4) + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const uint32_t row = RowsBefore(i);
      ptx::MmaUnsigned(sums_[i], Codes(from + 8 * row), Codes(from + 8 * (row + 8)),
                       Codes(from + kSecond + 8 * row), Codes(from + kSecond + 8 * (row + 8)),
                       weights[0], weights[1]);
    }
  }

  // Calls visit(channel, sum) for the lane's channels.
  template <class Visit>
  __device__ __forceinline__ void ForEach(int lane, const Visit& visit) const {
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float high = static_cast<float>(sums_[i][2 * h]);
        visit(ChannelOfRow(RowsBefore(i) + 8 * h + g),
              fmaf(256.0f, high, static_cast<float>(sums_[i][2 * h + 1])));
      }
    }
  }

 private:
  static constexpr int kSteps = kHeadDim / 16;
  // From the first round's codes to the second's.
  static constexpr uint32_t kSecond = kHeadDim == 128 ? kExchangeBytes : 256;

  // Rows are what Add writes: two channels of lane 0, of lane 1 and so on, then the lanes' other
  // two. With two rounds at once a round has half of the lanes of either.
  static __device__ constexpr int RowsBefore(int step) {
    return kHeadDim == 128 ? 16 * step : 16 * (step % 2) + 64 * (step / 2);
  }
  static __device__ __forceinline__ int ChannelOfRow(int row) {
    return 4 * (row / 2 % 32) + row / 64 * 2 + row % 2;
  }
  static __device__ __forceinline__ uint32_t Codes(const std::byte* four) {
    const uint32_t codes = *reinterpret_cast<const uint16_t*>(four);
    return (codes | codes << 12) & 0x0F0F0F0Fu;
  }

  int32_t sums_[kSteps][4];
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_
