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

// A step and a zero point a token.
struct TokenSteps {
  uint4 scale[2];  // of bf16
  uint4 zero[2];   // of int16

  // Of a pack that begins at `place`.
  __device__ __forceinline__ void Load(const uint16_t* scales, const int16_t* zeros, int place) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[i] = reinterpret_cast<const uint4*>(scales + place)[i];
      zero[i] = reinterpret_cast<const uint4*>(zeros + place)[i];
    }
  }
  __device__ __forceinline__ float scale_of(int i) const {
    const uint32_t two = Two(scale[i / 8], i);
    return __uint_as_float(i % 2 == 0 ? two << 16 : two & 0xFFFF0000u);
  }
  __device__ __forceinline__ float zero_of(int i) const {
    const uint32_t two = Two(zero[i / 8], i);
    return static_cast<float>(static_cast<int32_t>(i % 2 == 0 ? two << 16 : two) >> 16);
  }

 private:
  static __device__ __forceinline__ uint32_t Two(const uint4& eight, int i) {
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
    return words[i % 8 / 2];
  }
};

// Of a step's tokens lane 4 g + t has those of pack g, for row t.
using LaneTokens = float[kPackTokens];

// Logits are to base 2. Sums of weighted codes are exact, in a unit and from a reference; both
// change rarely, and then the sums go to the state.
template <int kHeadDim>
class RangeAttention {
 public:
  static constexpr int kRowPairs = kProductRows / 2;

  // `q`: [rows][kRowStride], by channel, times the scale; overwritten, and in use as long as this.
  __device__ __forceinline__ RangeAttention(const RowLimits& limits, float soft_cap, float* q,
                                            ValueOperand<kRowPairs>& weights,
                                            const std::byte* tables,
                                            const RowState<kHeadDim>& state, int lane)
      : soft_cap_(soft_cap),
        queries_(*reinterpret_cast<KeyOperand<kHeadDim>*>(q)),
        weights_(weights),
        tables_(tables),
        state_(state),
        lane_(lane) {
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

  // The step's pieces are the next of `feed`. `masked`: not all rows see all of its tokens.
  __device__ __forceinline__ void AddStep(const StepWalk& walk, uint32_t k_bits, uint32_t v_bits,
                                          bool masked, PieceFeed<kHeadDim>& feed) {
    LaneTokens y;
    AddKeys(k_bits, feed.Wait(walk), y);
    // Of a block that is not there the first's: nobody sees its tokens.
    const TokenTable& table =
        reinterpret_cast<const TokenTable*>(tables_)[walk.has_second() ? lane_ / 16 : 0];
    const int place = lane_ / 4 % kRounds * kPackTokens;
    TokenSteps steps;
    steps.Load(table.k_scale, table.k_zero, place);
#pragma unroll
    for (int i = 0; i < kPackTokens; ++i) {
      y[i] = steps.scale_of(i) * fmaf(steps.zero_of(i), query_sum_, y[i]);
      if (soft_cap_ > 0) y[i] = Capped(y[i], soft_cap_);
    }
    if (masked) Mask(walk, table.order + place, y);
    steps.Load(table.v_scale, table.v_zero, place);
    Weigh(steps, y);
    __syncwarp();
    feed.LoadKeys();
    weights_.Make(y, lane_);
    const Piece values = feed.Wait(walk);
    if (v_bits < kNibbleCodeBits) {
      AddValues<kNibbleCodeBits - 1>(v_bits, values);
    } else {
      AddValues<kNibbleCodeBits>(v_bits, values);
    }
    __syncwarp();
    feed.LoadValues();
    ++steps_in_sums_;
  }

  // Writes the state.
  __device__ __forceinline__ void End() {
    TakeSums();
    __syncwarp();  // Other lanes' outputs are read next, and shuffles order no memory.
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
  // K's products: q.k without steps and zero points.
  __device__ __forceinline__ void AddKeys(uint32_t k_bits, const Piece& keys, LaneTokens& y) const {
    const RoundFormat<kHeadDim, kKeyLanes> format(k_bits, lane_);
    LaneChannels<kHeadDim, kKeyLanes, kNibbleCodeBits> channels;
    channels.Begin(format, keys.Round(lane_ / 16, lane_ / 4 % kRounds), lane_);
    KeySums<kHeadDim> sums;
    sums.Clear();
#pragma unroll 1
    for (int group = 0; group < KeyOperand<kHeadDim>::kGroups; ++group) {
      PackCodes codes[kNibbleChannels];
#pragma unroll
      for (int i = 0; i < kNibbleChannels; ++i) codes[i] = channels.Next(i);
      channels.Skip(kNibbleChannels);
      sums.Add(codes, channels.NextMinima(), queries_.words[group][lane_]);
    }
    int32_t integers[kPackTokens];
    sums.Take(integers);
#pragma unroll
    for (int i = 0; i < kPackTokens; ++i) y[i] = static_cast<float>(integers[i]) * query_unit_;
  }

  template <int kCodeBits>
  __device__ __forceinline__ void AddValues(uint32_t v_bits, const Piece& values) {
    const RoundFormat<kHeadDim, kValueLanes> format(v_bits, lane_);
    LaneChannels<kHeadDim, kValueLanes, kCodeBits> channels[kStepBlocks];
#pragma unroll
    for (int block = 0; block < kStepBlocks; ++block)
      channels[block].Begin(format, values.Round(block, lane_ % 4), lane_);
    uint32_t minima[kStepBlocks];
#pragma unroll
    for (int quad = 0; quad < ValueSums<kHeadDim, kRowPairs>::kQuads; ++quad) {
      PackCodes codes[kStepBlocks][kQuadChannels];
#pragma unroll
      for (int block = 0; block < kStepBlocks; ++block) {
        minima[block] = quad % 2 == 0 ? channels[block].NextMinima() : minima[block] >> 16;
#pragma unroll
        for (int i = 0; i < kQuadChannels; ++i)
          codes[block][i] = channels[block].Next(kQuadChannels * quad + i);
      }
      sums_.Add(quad, codes[0], codes[1], minima[0], minima[1], weights_, lane_);
    }
  }

  // `order`: of the lane's places.
  __device__ __forceinline__ void Mask(const StepWalk& walk, const uint8_t* order,
                                       LaneTokens& y) const {
    const CodedRun& run = walk.run();
    const uint32_t first = run.first;
    // Of a block that is not there no token is.
    const uint32_t end = lane_ < 16 || walk.has_second() ? first + run.count : 0;
    const uint32_t block = walk.block + lane_ / 16;
    const uint4 sixteen = *reinterpret_cast<const uint4*>(order);
    const uint32_t words[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
#pragma unroll
    for (int i = 0; i < kPackTokens; ++i) {
      const uint32_t token = block * kBlockTokens + (words[i / 4] >> (8 * (i % 4)) & 0xFFu);
      const uint32_t at = run.position + token;
      if (token < first || token >= end || at < begin_ || at >= end_) y[i] = -INFINITY;
    }
  }

  // From logits to integer weights, plus kWeightBias.
  __device__ __forceinline__ void Weigh(const TokenSteps& steps, LaneTokens& y) {
    float largest = y[0];
#pragma unroll
    for (int i = 1; i < kPackTokens; ++i) largest = fmaxf(largest, y[i]);
    largest = MaxOverG(largest);
    bool takes = steps_in_sums_ == kValueStepsMax;
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
    for (int i = 0; i < kPackTokens; ++i) {
      const float p = ptx::Exp2(y[i] - reference);
      sum_ += p;
      y[i] = p * steps.scale_of(i);
      largest_weight = fmaxf(largest_weight, y[i]);
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
    for (int i = 0; i < kPackTokens; ++i) {
      y[i] = fmaf(y[i], integer, kWeightBias);
      zeros = fmaf(y[i] - kWeightBias, steps.zero_of(i), zeros);
    }
    zeros_ = fmaf(zeros, unit_.weight(), zeros_);
  }

  // Adds the sums to the state, which then has the reference that they were counted from.
  __device__ __forceinline__ void TakeSums() {
    const float factor = ptx::Exp2(state_reference_ - reference_);
    const float weight = unit_.weight();
    float factors[kRowPairs];
    float weights[kRowPairs];
#pragma unroll
    for (int pair = 0; pair < kRowPairs; ++pair) {
      const int row = 2 * pair + lane_ % 4 / 2;
      factors[pair] = __shfl_sync(kAllLanes, factor, row);
      weights[pair] = __shfl_sync(kAllLanes, weight, row);
    }
    sums_.ForEach(lane_, [&](int row, int channel, float sum) {
      float& output = state_.output(row, channel);
      output = fmaf(sum, weights[row / 2], output * factors[row / 2]);
    });
    sums_.Clear();
    steps_in_sums_ = 0;
    state_reference_ = reference_;
  }

  const float soft_cap_;
  KeyOperand<kHeadDim>& queries_;
  ValueOperand<kRowPairs>& weights_;
  const std::byte* const tables_;
  const RowState<kHeadDim> state_;
  const int lane_;
  // Of the lane's query row t:
  uint32_t begin_;
  uint32_t end_;
  float query_unit_;
  float query_sum_;
  float reference_ = kNoReference;
  float state_reference_ = kNoReference;
  // Of the lane's tokens: weights, and weights times steps and zero points.
  float sum_ = 0;
  float zeros_ = 0;
  ValueUnit unit_;
  ValueSums<kHeadDim, kRowPairs> sums_;
  uint32_t steps_in_sums_ = 0;
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
  StepWalk walk(cell, header_bytes, unit_begin, unit_end, lane);
  std::byte* const tables = reinterpret_cast<std::byte*>(memory.sums);
  PieceFeed<kHeadDim> feed(walk, kv_head, kv_heads, ring, tables, lane);
  const RowLimits limits = prepare();
  RangeAttention<kHeadDim> attention(
      limits, soft_cap, memory.q,
      *reinterpret_cast<ValueOperand<kProductRows / 2>*>(memory.operand), tables, state, lane);
#pragma unroll 1
  while (walk.blocks_left > 0) {
    const std::byte* const body = walk.body;
    const uint32_t k_bits = walk.header().k_bits;
    const uint32_t v_bits = walk.header().v_bits;
    const CodedRun run = walk.run();
    // Steps that all rows see as a whole begin at these tokens.
    const int clear_begin =
        max(static_cast<int>(run.first), static_cast<int>(limits.begin_all - run.position));
    const int clear_end = min(static_cast<int>(run.first + run.count),
                              static_cast<int>(limits.end_all - run.position)) -
                          static_cast<int>(kStepBlocks) * kBlockTokens;
#pragma unroll 1
    for (; walk.body == body && walk.blocks_left > 0; walk.Next()) {
      const int token = static_cast<int>(walk.block * kBlockTokens);
      attention.AddStep(walk, k_bits, v_bits, token < clear_begin || token > clear_end, feed);
    }
  }
  attention.End();
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ATTEND_RANGE_CUH_
