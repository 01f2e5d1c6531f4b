// Attention of one warp over consecutive steps of `planes` segments of one KV head.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_ring.cuh"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/attend_products.cuh"
#include "gpu/planes/attend_queries.cuh"
#include "gpu/planes/attend_walk.cuh"

namespace kvdepot::planes {

// exp2(kWeightLog2) times the largest token scale, 1.875, stays below 2^16.
inline constexpr float kWeightLog2 = 15.0f;
// How far a step's reference may exceed that of the sums before those are scaled.
inline constexpr float kReferenceSpan = 60.0f;
// Of a lane in a step: tokens 8 i + g.
inline constexpr int kStepTokensOfLane = kStepBlocks * kBlockTokens / 8;
// 2^23: adding it leaves an integer in the low bits of a float.
inline constexpr float kIntegerMagic = 8388608.0f;

// What dispatch needs of a DeviceHead, in registers.
struct HeadFormat {
  uint32_t k_widths;
  uint32_t v_widths;
  uint32_t k_counts;
  uint32_t v_counts;

  __device__ explicit HeadFormat(const DeviceHead& head)
      : k_widths(Uniform(head.k_widths)),
        v_widths(Uniform(head.v_widths)),
        k_counts(WidthCounts(k_widths)),
        v_counts(WidthCounts(v_widths)) {}

  __device__ uint32_t KeyPlanesBytes() const {
    // Sum of the nibbles.
    const uint32_t pairs = (k_widths & 0x0F0F0F0Fu) + (k_widths >> 4 & 0x0F0F0F0Fu);
    return 256 * (pairs * 0x01010101u >> 24);
  }
};

// Weights are integers of 16 bits, counted from each step's own largest logit: a long range keeps
// the precision of a short one.
template <int kHeadDim, int kTiles>
class RangeAttention {
 public:
  __device__ RangeAttention(const HeadFormat& head, const WarpMemory<kHeadDim>& memory,
                            const RowLimits& limits, float soft_cap,
                            const RowState<kHeadDim>& state, int lane)
      : head_(head),
        memory_(memory),
        key_planes_bytes_(head.KeyPlanesBytes()),
        soft_cap_(soft_cap),
        state_(state),
        lane_(lane) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int row = 4 * n + lane % 4;
      begin_[n] = limits.Begin(row);
      end_[n] = limits.End(row);
      reference_[n] = kNoReference;
      folded_reference_[n] = kNoReference;
      folded_sum_[n] = 0;
    }
    ClearSums();
  }

  __device__ void BeginSegment(const std::byte* k_table) {
    queries_.Make(k_table, head_.k_widths, memory_.q, memory_.operand, lane_);
  }

  // The step's blocks lie at `record` and `second` bytes after it. `masked`: not all rows see all
  // of its tokens, of which the first has position `position`; those before `first` and from `end`
  // on belong to no row, whatever lies there.
  __device__ __forceinline__ void AddStep(const std::byte* record, int second, bool masked,
                                          uint32_t position, int first, int end) {
    TokenCodes k_codes;
    TokenCodes v_codes;
#pragma unroll
    for (int block = 0; block < kStepBlocks; ++block) {
      const uint4 codes =
          *reinterpret_cast<const uint4*>(record + block * second + 16 * (lane_ / 4));
      k_codes.words[2 * block] = codes.x;
      k_codes.words[2 * block + 1] = codes.y;
      v_codes.words[2 * block] = codes.z;
      v_codes.words[2 * block + 1] = codes.w;
    }
    const std::byte* planes = record + kTokenScaleBytes;
    float y[kTiles][kStepTokensOfLane];
    Logits(k_codes, planes, second, y);
    if (masked) Mask(position, first, end, y);
    StepWeights<kTiles> weights;
    Weigh(v_codes, y, weights);
    AddValueProducts<kTiles>(head_.v_counts, second, lane_, planes + key_planes_bytes_, weights,
                             memory_.sums);
  }

  // Adds the segment's sums to the state.
  __device__ __forceinline__ void EndSegment(const std::byte* v_table) {
    constexpr int kEntries = kHeadDim / 8;
    const int g = lane_ / 4;
    const int t = lane_ % 4;
    const __half* scales = reinterpret_cast<const __half*>(v_table) + g * 2 * kEntries;
    const __half* centres = scales + kEntries;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float sum = SumOverG(sum_[n]);
      const float weight_sum = weight_sum_[n];
      const float factor = ptx::Exp2(folded_reference_[n] - reference_[n]);
      folded_sum_[n] = folded_sum_[n] * factor + sum;
      folded_reference_[n] = reference_[n];
      const int row = 4 * n + t;
#pragma unroll 1
      for (int group = 0; group < kHeadDim / 32; ++group) {
        const float half =
            0.5f * static_cast<float>(AlignedLevelMax(head_.v_widths >> (4 * group) & 15u));
        const float4 sums = memory_.sums[32 * (kTiles * group + n) + lane_];
        const float low[2] = {sums.x, sums.z};
        const float high[2] = {sums.y, sums.w};
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const int i = 2 * group + tile;
          const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(scales + 2 * i));
          const float2 centre = __half22float2(*reinterpret_cast<const __half2*>(centres + 2 * i));
          float& out0 = state_.output(row, 16 * i + g);
          float& out1 = state_.output(row, 16 * i + 8 + g);
          out0 = out0 * factor + scale.x * (low[tile] - half * weight_sum) + centre.x * sum;
          out1 =
              out1 * factor + scale.y * (high[tile] * 0.0625f - half * weight_sum) + centre.y * sum;
        }
      }
    }
    ClearSums();
  }

  // Writes references and sums; the outputs are there.
  __device__ void End() {
    if (lane_ < 4) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        state_.reference(4 * n + lane_) = folded_reference_[n];
        state_.sum(4 * n + lane_) = folded_sum_[n];
      }
    }
  }

 private:
  __device__ void ClearSums() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      sum_[n] = 0;
      weight_sum_[n] = 0;
    }
#pragma unroll 1
    for (int i = lane_; i < kTiles * kHeadDim; i += 32) memory_.sums[i] = {0, 0, 0, 0};
  }

  __device__ __forceinline__ float UnitOf(int n) const {
    return soft_cap_ > 0 ? 1.0f : queries_.multiplier[n];
  }

  // Codes of the lane's tokens, of K or of V.
  struct TokenCodes {
    uint32_t words[kStepTokensOfLane / 4];
    // The scale of token 8 i + g times 2^power (gpu/FORMAT.md), from `exponent`: the bits of
    // 2^(power - 31) as a float.
    __device__ __forceinline__ float Scale(int i, uint32_t exponent) const {
      const uint32_t code = __byte_perm(words[i / 4], 0, 0x4440 + i % 4);
      return __uint_as_float((code << 20) + exponent);
    }
  };

  // Logits to base 2, in units of UnitOf, of tokens 8 i + g.
  __device__ __forceinline__ void Logits(const TokenCodes& codes, const std::byte* planes,
                                         int second, float (&y)[kTiles][kStepTokensOfLane]) const {
    int32_t scores[kTiles][kStepChunks][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int x = 0; x < kStepChunks; ++x) {
        scores[n][x][0] = 0;
        scores[n][x][1] = -queries_.half[n];
        scores[n][x][2] = 0;
        scores[n][x][3] = -16 * queries_.half[n];
      }
    }
    AddKeyProducts<kTiles>(head_.k_counts, second, lane_, planes, memory_.operand, scores);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      // High nibbles count sixteen times.
      const uint32_t exponent[2] = {(96u << 23) + queries_.unit_bits[n],
                                    (92u << 23) + queries_.unit_bits[n]};
#pragma unroll
      for (int i = 0; i < kStepTokensOfLane; ++i) {
        y[n][i] = fmaf(codes.Scale(i, exponent[i % 2]), ProductOf(scores[n][i / 2], i % 2),
                       queries_.centre[n]);
      }
    }
    if (soft_cap_ > 0) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kStepTokensOfLane; ++i)
          y[n][i] = Capped(y[n][i] * queries_.multiplier[n], soft_cap_);
      }
    }
  }

  __device__ __forceinline__ void Mask(uint32_t position, int first, int end,
                                       float (&y)[kTiles][kStepTokensOfLane]) const {
#pragma unroll
    for (int i = 0; i < kStepTokensOfLane; ++i) {
      const int token = 8 * i + lane_ / 4;
      const uint32_t at = position + token;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if (token < first || token >= end || at < begin_[n] || at >= end_[n]) y[n][i] = -INFINITY;
      }
    }
  }

  // p = 2^(y - the step's reference), and p times V's token scales as integers.
  __device__ __forceinline__ void Weigh(const TokenCodes& codes,
                                        const float (&y)[kTiles][kStepTokensOfLane],
                                        StepWeights<kTiles>& weights) {
    float scale[kStepTokensOfLane];
#pragma unroll
    for (int i = 0; i < kStepTokensOfLane; ++i) scale[i] = codes.Scale(i, 96u << 23);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float largest = fmaxf(y[n][0], y[n][1]);
#pragma unroll
      for (int i = 2; i < kStepTokensOfLane; i += 2)
        largest = fmaxf(largest, fmaxf(y[n][i], y[n][i + 1]));
      // kNoReference where nothing is visible.
      const float reference =
          fmaxf(ceilf(MaxOverG(largest) * UnitOf(n)) - kWeightLog2, kNoReference);
      if (__any_sync(kAllLanes, reference - reference_[n] > kReferenceSpan))
        Raise(n, fmaxf(reference, reference_[n]));
      weights.factor[n] = ptx::Exp2(reference - reference_[n]);
      float sum[2] = {0, 0};
#pragma unroll
      for (int x = 0; x < kStepChunks; ++x) {
        uint32_t weight[2];
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const float p = ptx::Exp2(fmaf(y[n][2 * x + s], UnitOf(n), -reference));
          sum[s] += p;
          weight[s] = __float_as_uint(fmaf(p, scale[2 * x + s], kIntegerMagic));
        }
        weights.operand[n][x] = ptx::Transpose8x8(__byte_perm(weight[0], weight[1], 0x4051));
      }
      sum_[n] = fmaf(sum[0] + sum[1], weights.factor[n], sum_[n]);
      weight_sum_[n] = fmaf(WeightSum(weights, n), weights.factor[n], weight_sum_[n]);
    }
  }

  // Brings the segment's sums to a higher reference: before the first block, and where logits rise
  // further than the sums' exponents should.
  __device__ __forceinline__ void Raise(int n, float reference) {
    const float factor = ptx::Exp2(reference_[n] - reference);
    reference_[n] = reference;
    sum_[n] *= factor;
    weight_sum_[n] *= factor;
#pragma unroll 1
    for (int group = 0; group < kHeadDim / 32; ++group) {
      float4& sums = memory_.sums[32 * (kTiles * group + n) + lane_];
      sums = {sums.x * factor, sums.y * factor, sums.z * factor, sums.w * factor};
    }
  }

  const HeadFormat head_;
  const WarpMemory<kHeadDim> memory_;
  const uint32_t key_planes_bytes_;
  const float soft_cap_;
  const RowState<kHeadDim> state_;
  const int lane_;
  // Of this lane's query rows.
  uint32_t begin_[kTiles];
  uint32_t end_[kTiles];

  SegmentQueries<kHeadDim, kTiles> queries_;
  float reference_[kTiles];
  float folded_reference_[kTiles];
  float folded_sum_[kTiles];
  // Of the segment so far: the lane's share of p, and the sum of all weights.
  float sum_[kTiles];
  float weight_sum_[kTiles];
};

// Units [unit_begin, unit_end) of the cell's `planes` list into `state`.
// `prepare` fills memory.q by place, clears `state` and returns the row's limits; it is called once
// copies are under way.
template <int kHeadDim, int kTiles, class Prepare>
__device__ __forceinline__ void AttendRange(const AttendCell& cell, uint32_t kv_head,
                                            uint32_t header_bytes, uint32_t unit_begin,
                                            uint32_t unit_end, float soft_cap,
                                            const WarpMemory<kHeadDim>& memory,
                                            Ring<kHeadDim>& ring, const RowState<kHeadDim>& state,
                                            int lane, const Prepare& prepare) {
  BlockWalk<kHeadDim> walk(cell, kv_head, header_bytes, unit_begin, unit_end, lane);
  BlockWalk<kHeadDim> ahead = walk;
  const auto load_record = [&] {
    if (ahead.blocks_left == 0) return;
    ring.LoadPiece(ahead.record(), ahead.record_bytes());
    ahead.NextBlock();
  };
  ring.Begin(walk.record_bytes());
  ring.LoadKeyTable(walk.part);
  for (int i = 0; i < kStepBlocks; ++i) load_record();
  ring.LoadValueTable(walk.part);
  for (uint32_t slot = kStepBlocks; slot < ring.slots(); ++slot) load_record();
  const RowLimits limits = prepare();
  const HeadFormat widths(cell.heads[kv_head]);

  RangeAttention<kHeadDim, kTiles> attention(widths, memory, limits, soft_cap, state, lane);
  while (walk.blocks_left > 0) {
    ring.WaitKeyTable();
    attention.BeginSegment(memory.k_table);
    __syncwarp();
    const BlockWalk<kHeadDim> run = walk;
    walk.NextRun();
    if (walk.blocks_left > 0) ring.LoadKeyTable(walk.part);
    // Steps that all rows see as a whole begin at these positions.
    const int clear_begin = static_cast<int>(max(run.position + run.first, limits.begin_all));
    const int clear_end =
        static_cast<int>(min(run.position + run.end, limits.end_all)) - kStepBlocks * kBlockTokens;
    uint32_t token = run.token;
    for (uint32_t left = run.blocks_left; left > 0; token += kStepBlocks * kBlockTokens) {
      const int position = static_cast<int>(run.position + token);
      const bool masked = position < clear_begin || position > clear_end;
      const bool is_whole = left >= kStepBlocks;
      const std::byte* const record = ring.WaitPiece();
      const std::byte* const second = is_whole ? ring.WaitPiece() : record;
      attention.AddStep(record, static_cast<int>(second - record), masked, run.position + token,
                        static_cast<int>(run.first - token), static_cast<int>(run.end - token));
      __syncwarp();
      load_record();
      if (is_whole) load_record();
      left -= is_whole ? kStepBlocks : 1;
    }
    ring.WaitValueTable();
    attention.EndSegment(memory.v_table);
    __syncwarp();
    if (walk.blocks_left > 0) ring.LoadValueTable(walk.part);
  }
  attention.End();
  __syncwarp();
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_
