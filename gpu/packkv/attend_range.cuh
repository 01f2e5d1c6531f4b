// Attention of one warp over consecutive steps of `packkv` segments of one KV head, up to four
// query rows.
#ifndef KVDEPOT_GPU_PACKKV_ATTEND_RANGE_CUH_
#define KVDEPOT_GPU_PACKKV_ATTEND_RANGE_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_ring.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/attend_walk.cuh"
#include "gpu/packkv/products.cuh"
#include "gpu/packkv/round.cuh"
#include "gpu/packkv/value_unit.cuh"

namespace kvdepot::packkv {

// Of a block's tokens, lane 4 g + t has places 16 r + 2 g and 16 r + 2 g + 1 of each round r.
template <class Value>
using LaneTokens = Value[kRounds][2];

// A step and a zero point a token.
struct TokenSteps {
  uint32_t scale[kRounds];  // two bf16
  uint32_t zero[kRounds];   // two int16

  __device__ __forceinline__ void Load(const uint16_t* scales, const int16_t* zeros, int lane) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int place = kPackTokens * r + lane / 4 * 2;
      scale[r] = *reinterpret_cast<const uint32_t*>(scales + place);
      zero[r] = *reinterpret_cast<const uint32_t*>(zeros + place);
    }
  }
  __device__ __forceinline__ float scale_of(int r, int i) const {
    return __uint_as_float(i == 0 ? scale[r] << 16 : scale[r] & 0xFFFF0000u);
  }
  __device__ __forceinline__ float zero_of(int r, int i) const {
    const int32_t word = static_cast<int32_t>(i == 0 ? zero[r] << 16 : zero[r]);
    return static_cast<float>(word >> 16);
  }
};

// Logits are to base 2. Sums of weighted codes are exact, in a unit and from a reference; both
// change rarely, and then the sums go to the state.
template <int kHeadDim>
class RangeAttention {
 public:
  // `q`: [rows][kRowStride], by channel, times the scale; overwritten.
  __device__ __forceinline__ RangeAttention(const RowLimits& limits, float soft_cap, float* q,
                                            std::byte* exchange, const RowState<kHeadDim>& state,
                                            int lane)
      : soft_cap_(soft_cap), exchange_(exchange), state_(state), lane_(lane) {
    begin_ = limits.Begin(lane % 4);
    end_ = limits.End(lane % 4);
#pragma unroll 1
    for (int row = 0; row < kProductRows; ++row) {
      float* const values = q + row * kRowStride<kHeadDim>;
      float largest = 0;
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i)
        largest = fmaxf(largest, fabsf(values[32 * i + lane]));
      largest = fmaxf(MaxOfWarp(largest), 1e-30f);
      const float units = kQueryMax / largest;
      // Of the integers, so that what rounding does to codes and zero points cancels.
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kHeadDim / 32; ++i) {
        float& value = values[32 * i + lane];
        value = rintf(value * units);
        sum += value;
      }
      sum = SumOfWarp(sum);
      if (lane % 4 == row) {
        query_unit_ = largest / kQueryMax;
        query_sum_ = sum * query_unit_;
      }
    }
    __syncwarp();
    queries_.Make(q, kRowStride<kHeadDim>, lane);
    sums_.Clear();
    __syncwarp();
  }

  // The block's pieces are the next of `feed`. `masked`: not all rows see all of its tokens.
  __device__ __forceinline__ void AddBlock(const BlockWalk& walk, uint32_t header_bytes,
                                           uint32_t k_bits, uint32_t v_bits, bool masked,
                                           PieceFeed<kHeadDim>& feed) {
    const TokenTable& table = walk.table();
    TokenSteps steps;
    steps.Load(table.k_scale, table.k_zero, lane_);
    LaneTokens<float> y;
    AddKeys(walk, header_bytes, k_bits, feed, y);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        y[r][k] = steps.scale_of(r, k) * fmaf(steps.zero_of(r, k), query_sum_, y[r][k]);
        if (soft_cap_ > 0) y[r][k] = Capped(y[r][k], soft_cap_);
      }
    }
    steps.Load(table.v_scale, table.v_zero, lane_);
    if (masked) Mask(walk, y);
    Weigh(steps, y);
    if (v_bits < kNibbleCodeBits) {
      AddValues<kNibbleCodeBits - 1>(walk, header_bytes, v_bits, feed, y);
    } else {
      AddValues<kNibbleCodeBits>(walk, header_bytes, v_bits, feed, y);
    }
    ++blocks_in_sums_;
  }

  // Writes the state.
  __device__ __forceinline__ void End() {
    TakeSums();
    const float zeros = SumOverG(zeros_);
    const float sum = SumOverG(sum_);
    const int t = lane_ % 4;
    for (int channel = lane_ / 4; channel < kHeadDim; channel += 8)
      state_.output(t, channel) += zeros;
    if (lane_ < 4) {
      state_.reference(t) = reference_;
      state_.sum(t) = sum;
    }
    __syncwarp();
  }

 private:
  static constexpr int kAtOnce = kRoundsAtOnce<kHeadDim>;
  static constexpr int kPasses = kPieceRounds / kAtOnce;

  // Rounds of both pieces of a tile, whose scans go on together.
  template <int kCodeBits>
  __device__ __forceinline__ void BeginTile(
      const RoundFormat<kHeadDim, kCodeBits>& format, PieceFeed<kHeadDim>& feed,
      Round<kHeadDim, kCodeBits> (&rounds)[2 * kPasses]) const {
    const std::byte* at[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; r += kPieceRounds) {
      uint32_t first_units;
      at[r] = feed.Wait(&first_units);
      at[r + 1] = at[r] + kUnitBytes * first_units;
    }
    BeginRounds(format, at, lane_, rounds);
  }

  // K's products: q.k without steps and zero points.
  __device__ __forceinline__ void AddKeys(const BlockWalk& walk, uint32_t header_bytes,
                                          uint32_t k_bits, PieceFeed<kHeadDim>& feed,
                                          LaneTokens<float>& y) const {
    const RoundFormat<kHeadDim, kNibbleCodeBits> format(k_bits, lane_);
    Round<kHeadDim, kNibbleCodeBits> rounds[2 * kPasses];
    BeginTile(format, feed, rounds);
#pragma unroll
    for (int pass = 0; pass < 2 * kPasses; ++pass) {
      Nibbles nibbles;
      rounds[pass].Read(format, nibbles);
      KeySums<kHeadDim> sums;
      sums.Make(nibbles, queries_, exchange_, lane_);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          y[kAtOnce * pass + i][k] =
              static_cast<float>(sums.of[i][k]) * (k == 0 ? query_unit_ : query_unit_ / 16);
        }
      }
      __syncwarp();
      if (pass % kPasses == kPasses - 1) feed.Used(pass / kPasses, walk, header_bytes);
    }
  }

  // Weights as ValueOperand takes them.
  template <int kCodeBits>
  __device__ __forceinline__ void AddValues(const BlockWalk& walk, uint32_t header_bytes,
                                            uint32_t v_bits, PieceFeed<kHeadDim>& feed,
                                            const LaneTokens<float>& weights) {
    const RoundFormat<kHeadDim, kCodeBits> format(v_bits, lane_);
    Round<kHeadDim, kCodeBits> rounds[2 * kPasses];
    BeginTile(format, feed, rounds);
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      Nibbles nibbles[kPasses];
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass)
        rounds[kPasses * piece + pass].Read(format, nibbles[pass]);
      const int r = kPieceRounds * piece;
      const uint32_t operand[kPieceRounds] = {ValueOperand(weights[r][0], weights[r][1]),
                                              ValueOperand(weights[r + 1][0], weights[r + 1][1])};
      sums_.Add(nibbles, operand, exchange_, lane_);
      __syncwarp();
      feed.Used(kBlockPieces / 2 + piece, walk, header_bytes);
    }
  }

  __device__ __forceinline__ void Mask(const BlockWalk& walk, LaneTokens<float>& y) const {
    const TokenTable& table = walk.table();
    const PlanesRun& run = walk.run();
    const uint32_t first = run.first;
    const uint32_t end = first + run.count;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const uint32_t token =
            walk.block * kBlockTokens + table.order[kPackTokens * r + lane_ / 4 * 2 + k];
        const uint32_t at = run.position + token;
        if (token < first || token >= end || at < begin_ || at >= end_) y[r][k] = -INFINITY;
      }
    }
  }

  // From logits to integer weights, plus kWeightBias.
  __device__ __forceinline__ void Weigh(const TokenSteps& steps, LaneTokens<float>& y) {
    float largest = y[0][0];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) largest = fmaxf(largest, fmaxf(y[r][0], y[r][1]));
    largest = MaxOverG(largest);
    bool takes = blocks_in_sums_ == kValueBlocksMax;
    float reference = reference_;
    if (__any_sync(kAllLanes, largest > reference_ + kHeadroomLog2)) {
      takes = true;
      reference = fmaxf(reference_, largest);
      const float factor = ptx::Exp2(reference_ - reference);
      sum_ *= factor;
      zeros_ *= factor;
    }
    float largest_weight = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float p = ptx::Exp2(y[r][k] - reference);
        sum_ += p;
        y[r][k] = p * steps.scale_of(r, k);
        largest_weight = fmaxf(largest_weight, y[r][k]);
      }
    }
    largest_weight = MaxOverG(largest_weight);
    takes = takes || __any_sync(kAllLanes, !unit_.Holds(largest_weight));
    if (takes) {
      TakeSums();
      // Weights are counted anew.
      if (reference > reference_) unit_ = ValueUnit();
      reference_ = reference;
      unit_.Grow(largest_weight);
    }
    const float integer = unit_.integer();
    // Of the integers, so that what rounding does to codes and zero points cancels: a value, their
    // sum, may be far smaller than either.
    float zeros = 0;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        y[r][k] = fmaf(y[r][k], integer, kWeightBias);
        zeros = fmaf(y[r][k] - kWeightBias, steps.zero_of(r, k), zeros);
      }
    }
    zeros_ = fmaf(zeros, unit_.weight(), zeros_);
  }

  // Adds the sums to the state, which then has the reference that they were counted from.
  __device__ __forceinline__ void TakeSums() {
    const float factor = ptx::Exp2(state_reference_ - reference_);
    const float weight = unit_.weight();
    const int t = lane_ % 4;
    sums_.ForEach(lane_, [&](int channel, float sum) {
      float& output = state_.output(t, channel);
      output = fmaf(sum, weight, output * factor);
    });
    sums_.Clear();
    blocks_in_sums_ = 0;
    state_reference_ = reference_;
  }

  const float soft_cap_;
  std::byte* const exchange_;
  const RowState<kHeadDim> state_;
  const int lane_;
  // Of the lane's query row t:
  uint32_t begin_;
  uint32_t end_;
  float query_unit_;
  float query_sum_;
  KeyOperand<kHeadDim> queries_;
  float reference_ = kNoReference;
  float state_reference_ = kNoReference;
  // Of the lane's tokens: weights, and weights times steps and zero points.
  float sum_ = 0;
  float zeros_ = 0;
  ValueUnit unit_;
  ValueSums<kHeadDim> sums_;
  uint32_t blocks_in_sums_ = 0;
};

// Units [unit_begin, unit_end) of the cell's list into `state`, which is clear. `prepare` fills
// memory.q by channel and returns the row's limits; it is called once copies are under way.
template <int kHeadDim, class Prepare>
__device__ __forceinline__ void AttendRange(const AttendCell& cell, uint32_t kv_head,
                                            uint32_t kv_heads, uint32_t header_bytes,
                                            uint32_t unit_begin, uint32_t unit_end, float soft_cap,
                                            const WarpMemory<kHeadDim>& memory,
                                            Ring<kHeadDim>& ring, const RowState<kHeadDim>& state,
                                            int lane, const Prepare& prepare) {
  BlockWalk walk(cell, header_bytes, unit_begin, unit_end, lane);
  PieceFeed<kHeadDim> feed(walk, kv_head, kv_heads, ring, lane);
  const RowLimits limits = prepare();
  RangeAttention<kHeadDim> attention(limits, soft_cap, memory.q,
                                     reinterpret_cast<std::byte*>(memory.operand), state, lane);
#pragma unroll 1
  while (walk.blocks_left > 0) {
    const std::byte* const body = walk.body;
    const uint32_t k_bits = walk.header().k_bits;
    const uint32_t v_bits = walk.header().v_bits;
    const PlanesRun run = walk.run();
    // Blocks that all rows see as a whole begin at these tokens.
    const int clear_begin =
        max(static_cast<int>(run.first), static_cast<int>(limits.begin_all - run.position));
    const int clear_end = min(static_cast<int>(run.first + run.count),
                              static_cast<int>(limits.end_all - run.position)) -
                          kBlockTokens;
#pragma unroll 1
    for (; walk.body == body && walk.blocks_left > 0; walk.Next(header_bytes)) {
      const int token = static_cast<int>(walk.block * kBlockTokens);
      attention.AddBlock(walk, header_bytes, k_bits, v_bits,
                         token < clear_begin || token > clear_end, feed);
    }
  }
  attention.End();
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ATTEND_RANGE_CUH_
