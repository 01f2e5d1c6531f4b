// Products of codes by tensor cores: of K with queries, of V with weights.
//
// Both factors are bytes, the other one of several: an integer of 16 bits takes two columns, one of
// 32 bits four. Codes stay in the lane that read them. Sums are exact.
#ifndef KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_
#define KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/round.cuh"

namespace kvdepot::packkv {

inline constexpr int kProductRows = 4;

// Word i: byte i of each.
__device__ __forceinline__ uint4 TransposeBytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab_low = __byte_perm(a, b, 0x5140);
  const uint32_t cd_low = __byte_perm(c, d, 0x5140);
  const uint32_t ab_high = __byte_perm(a, b, 0x7362);
  const uint32_t cd_high = __byte_perm(c, d, 0x7362);
  return {__byte_perm(ab_low, cd_low, 0x5410), __byte_perm(ab_low, cd_low, 0x7632),
          __byte_perm(ab_high, cd_high, 0x5410), __byte_perm(ab_high, cd_high, 0x7632)};
}

// Queries are integers of at most this, so that the high byte stays signed after rounding.
inline constexpr float kQueryMax = 32512.0f;

// Queries as operand B, in shared memory: a row's high bytes are a column, its low ones the next.
template <int kHeadDim>
struct KeyOperand {
  static constexpr int kGroups = kHeadDim / kKeyLanes / kNibbleChannels;
  // Of channels 0, 2, 4, 6 of a lane's group, then of 1, 3, 5, 7.
  uint2 words[kGroups][32];

  // Of eight channels of row lane / 8, of magnitudes up to kQueryMax.
  static __device__ __forceinline__ uint2 Words(const float (&q)[kNibbleChannels], int lane) {
    // Of the words whose bytes are the high parts and, top bits flipped, the low parts.
    const uint32_t bytes = lane / 4 % 2 == 0 ? 0x51 : 0x40;
    const uint32_t flipped = lane / 4 % 2 == 0 ? 0 : 0x80808080u;
    return {Four(q[0], q[2], q[4], q[6], bytes) ^ flipped,
            Four(q[1], q[3], q[5], q[7], bytes) ^ flipped};
  }
  // All lanes. Row r's channels are at q + r * stride, 16-byte aligned, of magnitudes up to
  // kQueryMax; they may lie where this does.
  __device__ __forceinline__ void Make(const float* q, int stride, int lane) {
    const float* const row = q + lane / 8 * stride + lane % 4 * (kHeadDim / kKeyLanes);
    uint2 made[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const float4 a = reinterpret_cast<const float4*>(row)[2 * group];
      const float4 b = reinterpret_cast<const float4*>(row)[2 * group + 1];
      const float eight[kNibbleChannels] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
      made[group] = Words(eight, lane);
    }
    __syncwarp();
#pragma unroll
    for (int group = 0; group < kGroups; ++group) words[group][lane] = made[group];
    __syncwarp();
  }

 private:
  // 1.5 * 2^23 + 128: the low 16 bits are value + 128.
  static __device__ __forceinline__ uint32_t Biased(float value) {
    return __float_as_uint(value + 12583040.0f);
  }
  static __device__ __forceinline__ uint32_t Four(float a, float b, float c, float d,
                                                  uint32_t bytes) {
    return __byte_perm(__byte_perm(Biased(a), Biased(b), bytes),
                       __byte_perm(Biased(c), Biased(d), bytes), 0x5410);
  }
};

// Sums of code * query over channels, for lane 4 g + t of pack g and row t.
template <int kHeadDim>
class KeySums {
 public:
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      minima_[k] = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) even_[b][k] = odd_[b][k] = 0;
    }
  }

  // A group of channels; `queries` are its words.
  __device__ __forceinline__ void Add(const PackCodes (&codes)[kNibbleChannels], uint32_t minima,
                                      const uint2& queries) {
    ptx::MmaSigned(minima_, minima & kLow, 0, minima >> 4 & kLow, 0, queries.x, queries.y);
    const uint4 even[2] = {
        TransposeBytes(codes[0].even, codes[2].even, codes[4].even, codes[6].even),
        TransposeBytes(codes[1].even, codes[3].even, codes[5].even, codes[7].even)};
    AddFour(even_, even, queries);
    const uint4 odd[2] = {TransposeBytes(codes[0].odd, codes[2].odd, codes[4].odd, codes[6].odd),
                          TransposeBytes(codes[1].odd, codes[3].odd, codes[5].odd, codes[7].odd)};
    AddFour(odd_, odd, queries);
  }

  // Of tokens 4 t to 4 t + 3 alone, for queries whose rows are all the same.
  __device__ __forceinline__ void TakeOfOneRow(int t, int32_t (&sums)[4]) const {
    const int32_t minima = 256 * minima_[0] + minima_[1];
    int32_t even[4], odd[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      even[k] = t < 2 ? (t < 1 ? even_[0][k] : even_[1][k]) : (t < 3 ? even_[2][k] : even_[3][k]);
      odd[k] = t < 2 ? (t < 1 ? odd_[0][k] : odd_[1][k]) : (t < 3 ? odd_[2][k] : odd_[3][k]);
    }
    TakeTwo(even, minima, &sums[0], &sums[2]);
    TakeTwo(odd, minima, &sums[1], &sums[3]);
  }
  // By token.
  __device__ __forceinline__ void Take(int32_t (&sums)[kPackTokens]) const {
    const int32_t minima = 256 * minima_[0] + minima_[1];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      TakeTwo(even_[b], minima, &sums[4 * b], &sums[4 * b + 2]);
      TakeTwo(odd_[b], minima, &sums[4 * b + 1], &sums[4 * b + 3]);
    }
  }

 private:
  static constexpr uint32_t kLow = 0x0F0F0F0Fu;

  // Rows g are low nibbles, rows g + 8 whole bytes.
  static __device__ __forceinline__ void AddFour(int32_t (&sums)[4][4], const uint4 (&words)[2],
                                                 const uint2& queries) {
    const uint32_t first[4] = {words[0].x, words[0].y, words[0].z, words[0].w};
    const uint32_t second[4] = {words[1].x, words[1].y, words[1].z, words[1].w};
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      ptx::MmaSigned(sums[b], first[b] & kLow, first[b], second[b] & kLow, second[b], queries.x,
                     queries.y);
    }
  }
  static __device__ __forceinline__ void TakeTwo(const int32_t (&sums)[4], int32_t minima,
                                                 int32_t* low, int32_t* high) {
    const int32_t lows = 256 * sums[0] + sums[1];
    *low = lows + minima;
    *high = ((256 * sums[2] + sums[3] - lows) >> 4) + minima;
  }

  int32_t minima_[4];  // the last two: of rows that are 0
  // Byte b of `even` and `odd`: tokens 4 b and 4 b + 2, 4 b + 1 and 4 b + 3.
  int32_t even_[4][4];
  int32_t odd_[4][4];
};

// Weights are integers of at most this. A weight plus the bias is rounded to one.
inline constexpr float kWeightMax = 4194304.0f;
inline constexpr float kWeightBias = 8388608.0f;

// Weights of a step's tokens as operand B, in shared memory. Those of low nibbles sixteenfold, as
// high nibbles are where they stand; byte h of row r's is column 4 (r % 2) + h of row pair r / 2.
template <int kRowPairs>
class ValueOperand {
 public:
  // For a lane: words of packs t and t + 4, of tokens 4 b (x, y) and 4 b + 1, b the byte; of 4 b +
  // 2 and 4 b + 3; of the sum of all, for minima in low nibbles and in high ones.
  __device__ __forceinline__ const uint4& words(int pair, int which, int lane) const {
    return words_[pair][which][lane ^ lane / 16 * 4];
  }

  // Lane 4 g + t brings the weights of pack g and row t, from 0 to kWeightMax, plus kWeightBias.
  __device__ __forceinline__ void Make(const float (&weights)[kPackTokens], int lane) {
    uint32_t biased_sum = 0;
#pragma unroll
    for (const float weight : weights) biased_sum += __float_as_uint(weight);
    const int row = lane % 4;
#pragma unroll
    for (int k = 0; k < 4; ++k)
      PutTokens(k, {weights[k], weights[4 + k], weights[8 + k], weights[12 + k]}, row, lane);
    const uint32_t sum = biased_sum - kPackTokens * kBiasBits;
#pragma unroll
    for (int h = 0; h < 4; ++h) PutSum(sum, h, row, lane);
    __syncwarp();
  }
  // Of row 0 alone: lane 4 g + t brings those of pack g, tokens 4 t to 4 t + 3.
  __device__ __forceinline__ void MakeOfOneRow(const float (&weights)[4], int lane) {
    uint32_t sum = 0;
#pragma unroll
    for (const float weight : weights) sum += __float_as_uint(weight) - kBiasBits;
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    // Lanes of a pack transpose: then t has tokens t, 4 + t, 8 + t and 12 + t.
    float own[4] = {weights[0], weights[1], weights[2], weights[3]};
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      const bool is_upper = (lane & distance) != 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & distance) != 0) continue;
        const float other =
            __shfl_xor_sync(kAllLanes, is_upper ? own[i] : own[i + distance], distance);
        (is_upper ? own[i] : own[i + distance]) = other;
      }
    }
    PutTokens(lane % 4, {own[0], own[1], own[2], own[3]}, 0, lane);
    PutSum(sum, lane % 4, 0, lane);
    __syncwarp();
  }

 private:
  static constexpr uint32_t kBiasBits = 0x4B000000u;

  // Word i of `which` for column `column` of a row pair and the pack of the lane's g.
  __device__ __forceinline__ uint32_t& Word(int pair, int which, int i, int column, int lane) {
    const int reader = 4 * column + lane / 4 % 4;
    return reinterpret_cast<uint32_t*>(
        &words_[pair][which][reader ^ reader / 16 * 4])[2 * i + lane / 16];
  }
  // Tokens k, 4 + k, 8 + k and 12 + k.
  __device__ __forceinline__ void PutTokens(int k, const float4& weights, int row, int lane) {
    const uint32_t factor = k < 2 ? 16 : 1;
    const auto integer = [&](float weight) {
      return factor * __float_as_uint(weight) - factor * kBiasBits;
    };
    const uint4 bytes = TransposeBytes(integer(weights.x), integer(weights.y), integer(weights.z),
                                       integer(weights.w));
    const int column = 4 * (row % 2);
    Word(row / 2, k / 2, k % 2, column, lane) = bytes.x;
    Word(row / 2, k / 2, k % 2, column + 1, lane) = bytes.y;
    Word(row / 2, k / 2, k % 2, column + 2, lane) = bytes.z;
    Word(row / 2, k / 2, k % 2, column + 3, lane) = bytes.w;
  }
  __device__ __forceinline__ void PutSum(uint32_t sum, int h, int row, int lane) {
    const int column = 4 * (row % 2) + h;
    Word(row / 2, 2, 0, column, lane) = __byte_perm(16 * sum, 0, 0x1111 * h);
    Word(row / 2, 2, 1, column, lane) = __byte_perm(sum, 0, 0x1111 * h);
  }

  // Lanes 16 to 31's places swapped by fours, so that writers of odd rows meet other banks.
  uint4 words_[kRowPairs][3][32];
};

static_assert(sizeof(ValueOperand<kProductRows / 2>) == kValueOperandBytes,
              "what a warp's memory has for it");

// Sums of weight * code over tokens: lane 4 g + t reads the channels of share g. At most
// kValueStepsMax steps of tokens are added before they are taken.
inline constexpr int kValueStepsMax = 256;
inline constexpr int kQuadChannels = 4;
template <int kHeadDim, int kRowPairs>
class ValueSums {
 public:
  static constexpr int kQuads = kHeadDim / kValueLanes / kQuadChannels;

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (auto& of_pair : sums_) {
#pragma unroll
      for (auto& of_rows : of_pair) {
#pragma unroll
        for (int32_t& sum : of_rows) sum = 0;
      }
    }
  }

  // Four channels of the lane, of packs t and t + 4. Their minima are nibbles 0 to 3.
  __device__ __forceinline__ void Add(int quad, const PackCodes (&first)[kQuadChannels],
                                      const PackCodes (&second)[kQuadChannels],
                                      uint32_t first_minima, uint32_t second_minima,
                                      const ValueOperand<kRowPairs>& weights, int lane) {
#pragma unroll
    for (int pair = 0; pair < kRowPairs; ++pair) {
      const uint4 low = weights.words(pair, 0, lane);
      const uint4 high = weights.words(pair, 1, lane);
      const uint4 of_minima = weights.words(pair, 2, lane);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        int32_t(&sums)[4] = sums_[pair][2 * quad + i];
        const auto add = [&](uint32_t mask, auto word, uint32_t b0, uint32_t b1) {
          ptx::MmaUnsigned(sums, word(first[i]) & mask, word(first[i + 2]) & mask,
                           word(second[i]) & mask, word(second[i + 2]) & mask, b0, b1);
        };
        const auto even = [](const PackCodes& codes) { return codes.even; };
        const auto odd = [](const PackCodes& codes) { return codes.odd; };
        add(0x0F0F0F0Fu, even, low.x, low.y);
        add(0x0F0F0F0Fu, odd, low.z, low.w);
        add(0xF0F0F0F0u, even, high.x, high.y);
        add(0xF0F0F0F0u, odd, high.z, high.w);
        const uint32_t own = 0x000Fu << (4 * i);
        ptx::MmaUnsigned(sums, first_minima & own, first_minima & own << 8, second_minima & own,
                         second_minima & own << 8, i == 0 ? of_minima.x : of_minima.z,
                         i == 0 ? of_minima.y : of_minima.w);
      }
    }
  }

  // All lanes. Calls visit(row, channel, sum) for the lane's share of all sums.
  template <class Visit>
  __device__ __forceinline__ void ForEach(int lane, const Visit& visit) const {
    const bool has_high_bytes = lane % 2 != 0;
    const int g = lane / 4;
#pragma unroll
    for (int pair = 0; pair < kRowPairs; ++pair) {
#pragma unroll
      for (int i = 0; i < 2 * kQuads; ++i) {
        const int32_t(&sums)[4] = sums_[pair][i];
        const float first = fmaf(256.0f, static_cast<float>(sums[1]), static_cast<float>(sums[0]));
        const float second = fmaf(256.0f, static_cast<float>(sums[3]), static_cast<float>(sums[2]));
        const float other = __shfl_xor_sync(kAllLanes, has_high_bytes ? first : second, 1);
        const float sum =
            has_high_bytes ? fmaf(65536.0f, second, other) : fmaf(65536.0f, other, first);
        visit(2 * pair + lane % 4 / 2,
              kHeadDim / kValueLanes * g + kQuadChannels * (i / 2) + i % 2 + 2 * (lane % 2),
              sum * (1.0f / 16));
      }
    }
  }

 private:
  // Rows g and g + 8 of sums 2 i and 2 i + 1: channels 4 i and 4 i + 2, 4 i + 1 and 4 i + 3.
  int32_t sums_[kRowPairs][2 * kQuads][4];
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_PRODUCTS_CUH_
