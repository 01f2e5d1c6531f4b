// Attention of one warp over consecutive blocks of `planes` segments of one KV head.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_
#define KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/attend_row.cuh"
#include "gpu/attend_state.cuh"
#include "gpu/attend_warp_memory.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/attend_cuda.cuh"
#include "gpu/unit_search.cuh"

namespace kvdepot::planes {

inline constexpr unsigned kLanesAll = 0xFFFFFFFFu;
// Queries are integers of at most this, so that the high byte stays signed after rounding.
inline constexpr float kQueryMax = 32512.0f;
// exp2(kWeightLog2) times the largest token scale, 1.875, stays below 2^16.
inline constexpr float kWeightLog2 = 15.0f;
// 2^23: adding it leaves an integer in the low bits of a float.
inline constexpr float kIntegerMagic = 8388608.0f;
inline constexpr uint32_t kIntegerMagicBits = 0x4B000000u;

// Sum, or maximum, over the lanes that share t: the same in all of them.
template <class T>
__device__ __forceinline__ T SumOverG(T value) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) value += __shfl_xor_sync(kLanesAll, value, mask);
  return value;
}
__device__ __forceinline__ float MaxOverG(float value) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2)
    value = fmaxf(value, __shfl_xor_sync(kLanesAll, value, mask));
  return value;
}

// Copies that are under way, and how many there have been: a barrier's phase is their parity.
template <int kHeadDim>
class Ring {
 public:
  __device__ Ring(const WarpMemory<kHeadDim>& memory, uint32_t slot_bytes, int lane)
      : memory_(memory),
        slot_bytes_(slot_bytes),
        is_leader_(lane == 0),
        policy_(ptx::EvictFirst()) {}

  __device__ void LoadRecord(const std::byte* record, uint32_t bytes) {
    const uint32_t slot = loaded_++ % kRingSlots;
    if (is_leader_)
      ptx::BulkLoad(memory_.slots + slot * slot_bytes_, record, bytes, &memory_.barriers[slot],
                    policy_);
  }
  __device__ const std::byte* WaitRecord() {
    const uint32_t slot = taken_ % kRingSlots;
    ptx::BarrierWait(&memory_.barriers[slot], taken_ / kRingSlots % 2);
    ++taken_;
    return memory_.slots + slot * slot_bytes_;
  }
  __device__ void LoadKeyTable(const std::byte* part) {
    if (is_leader_)
      ptx::BulkLoad(memory_.k_table, part, TableBytes(kHeadDim),
                    &memory_.barriers[kKeyTableBarrier], policy_);
  }
  __device__ void WaitKeyTable() {
    ptx::BarrierWait(&memory_.barriers[kKeyTableBarrier], k_tables_++ % 2);
  }
  __device__ void LoadValueTable(const std::byte* part) {
    if (is_leader_)
      ptx::BulkLoad(memory_.v_table, part + TableBytes(kHeadDim), TableBytes(kHeadDim),
                    &memory_.barriers[kValueTableBarrier], policy_);
  }
  __device__ void WaitValueTable() {
    ptx::BarrierWait(&memory_.barriers[kValueTableBarrier], v_tables_++ % 2);
  }

 private:
  const WarpMemory<kHeadDim>& memory_;
  const uint32_t slot_bytes_;
  const bool is_leader_;
  const uint64_t policy_;
  uint32_t loaded_ = 0;
  uint32_t taken_ = 0;
  uint32_t k_tables_ = 0;
  uint32_t v_tables_ = 0;
};

// Walks over the blocks of a list of runs.
template <int kHeadDim>
struct BlockWalk {
  const PlanesRun* runs;
  const DeviceHead* head;
  uint32_t kv_head;
  uint32_t header_bytes;
  PlanesRun run;
  uint32_t index;  // of `run`
  uint32_t block;  // next one, from the segment's beginning
  uint32_t left;   // blocks of the whole range from here on

  __device__ void Begin(uint32_t at_index, uint32_t unit, uint32_t units) {
    index = at_index;
    run = runs[index];
    block = run.first_block + unit - run.unit_begin;
    left = units;
  }
  __device__ uint32_t run_end() const {
    return (run.first + run.count + kBlockTokens - 1) / kBlockTokens;
  }
  __device__ uint32_t blocks_in_run() const { return min(run_end() - block, left); }
  __device__ const std::byte* part() const {
    return run.segment + PlanesPartOffset(header_bytes, kHeadDim, static_cast<int>(kv_head),
                                          head->record_bytes_before, run.blocks);
  }
  __device__ const std::byte* record() const {
    return part() + 2 * TableBytes(kHeadDim) + block * head->record_bytes;
  }
  __device__ void NextRun() {
    left -= blocks_in_run();
    if (left == 0) return;
    run = runs[++index];
    block = run.first_block;
  }
  // The next block; the next run where this one ends.
  __device__ void NextBlock() {
    --left;
    if (++block == run_end() && left > 0) {
      run = runs[++index];
      block = run.first_block;
    }
  }
};

// Queries of four rows a tile in the units of one segment's K table.
template <int kHeadDim, int kTiles>
struct SegmentQueries {
  uint32_t operand[kTiles][kHeadDim / 16];
  int32_t half[kTiles];        // what codes of zero would score, see AlignedLevelMax
  uint32_t unit_bits[kTiles];  // exponent to add to a token scale's
  float centre[kTiles];        // q . centres

  __device__ void Make(const std::byte* k_table, const float* q, const DeviceHead& head, int lane) {
    constexpr int kEntries = kHeadDim / 8;  // of a lane's g: scales, then centres
    const int g = lane / 4;
    const int t = lane % 4;
    const __half* scales = reinterpret_cast<const __half*>(k_table) + g * 2 * kEntries;
    const __half* centres = scales + kEntries;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float* row = q + (4 * n + t) * kRowStride<kHeadDim>;
      float value[kEntries];
      float largest = 0;
      float dot = 0;
#pragma unroll
      for (int m = 0; m < kEntries / 2; ++m) {
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(scales + 2 * m));
        const float2 centre = __half22float2(*reinterpret_cast<const __half2*>(centres + 2 * m));
        const uchar2 channel = *reinterpret_cast<const uchar2*>(head.k_order + 16 * m + 2 * g);
        const float q0 = row[channel.x];
        const float q1 = row[channel.y];
        value[2 * m] = q0 * scale.x;
        value[2 * m + 1] = q1 * scale.y;
        largest = fmaxf(largest, fmaxf(fabsf(value[2 * m]), fabsf(value[2 * m + 1])));
        dot = fmaf(q0, centre.x, fmaf(q1, centre.y, dot));
      }
      centre[n] = SumOverG(dot);
      largest = MaxOverG(largest);
      // 2^ceil(log2(largest / kQueryMax)), not below 2^-90.
      const uint32_t bits = __float_as_uint(largest * (1 / kQueryMax));
      const uint32_t exponent = max((bits + 0x7FFFFFu) >> 23, 127u - 90u);
      unit_bits[n] = (exponent - 127u) << 23;
      const float per_unit = __uint_as_float((254u - exponent) << 23);
#pragma unroll
      for (int m = 0; m < kEntries / 2; ++m) {
        // 1.5 * 2^23 + 128: the low 16 bits are q' + 128, whose bytes are the high part of q' and,
        // with its top bit flipped, the signed low part.
        const uint32_t a = __float_as_uint(fmaf(value[2 * m], per_unit, 12583040.0f));
        const uint32_t b = __float_as_uint(fmaf(value[2 * m + 1], per_unit, 12583040.0f));
        operand[n][m] = ptx::Transpose8x8(__byte_perm(a, b, 0x4051) ^ 0x80800000u);
      }
      int32_t twice[4] = {0, 0, 0, 0};
#pragma unroll
      for (int group = 0; group < kHeadDim / 32; ++group) {
        const uint32_t level = AlignedLevelMax(head.k_widths >> (4 * group) & 15u) * 0x01010101u;
        ptx::MmaSigned(twice, level, level, level, level, operand[n][2 * group],
                       operand[n][2 * group + 1]);
      }
      half[n] = (256 * twice[0] + twice[1]) / 2;
    }
  }
};

template <int kHeadDim, int kTiles>
class RangeAttention {
 public:
  __device__ RangeAttention(const DeviceHead& head, const RowLimits& limits, float soft_cap,
                            const float* q, const SharedState<kHeadDim>& state, int lane)
      : head_(head), limits_(limits), soft_cap_(soft_cap), q_(q), state_(state), lane_(lane) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      reference_[n] = kNoReference;
      folded_reference_[n] = kNoReference;
      folded_sum_[n] = 0;
    }
    ClearSums();
  }

  __device__ void BeginSegment(const std::byte* k_table) {
    queries_.Make(k_table, q_, head_, lane_);
  }

  // `masked`: not all rows see all 64 tokens, of which the first has position `position`; those
  // before `first` and from `end` on belong to no row.
  __device__ void AddBlock(const std::byte* record, bool masked, uint32_t position, int first,
                           int end) {
    const int g = lane_ / 4;
    const int t = lane_ % 4;
    const uint4 codes = *reinterpret_cast<const uint4*>(record + 16 * g);
    int32_t scores[kTiles][4][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        scores[n][x][0] = 0;
        scores[n][x][1] = -queries_.half[n];
        scores[n][x][2] = 0;
        scores[n][x][3] = -16 * queries_.half[n];
      }
    }
    const std::byte* planes = record + kTokenScaleBytes;
    KeyProducts<kHeadDim, kTiles>(head_.k_pattern, planes, lane_, queries_.operand, scores);

    float y[kTiles][8];  // logits to base 2 of tokens 16 x + 8 s + g, at 2 x + s
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int x = i / 2;
        const int s = i % 2;
        const int32_t score = 256 * scores[n][x][2 * s] + scores[n][x][2 * s + 1];
        const uint32_t code = __byte_perm(i < 4 ? codes.x : codes.y, 0, 0x4440 + i % 4);
        const float scale =
            __uint_as_float((code << 20) + ((s == 0 ? 96u : 92u) << 23) + queries_.unit_bits[n]);
        y[n][i] = fmaf(scale, static_cast<float>(score), queries_.centre[n]);
        if (soft_cap_ > 0) y[n][i] = Capped(y[n][i], soft_cap_);
        if (masked) {
          const int token = 16 * x + 8 * s + g;
          const uint32_t at = position + token;
          const int row = 4 * n + t;
          if (token < first || token >= end || at < limits_.Begin(row) || at >= limits_.End(row))
            y[n][i] = -INFINITY;
        }
      }
    }

    float p[kTiles][8];
    uint32_t weight[kTiles][8];
    uint32_t over = Weigh(codes, y, p, weight);
    if (__any_sync(kLanesAll, over != 0)) {
      Raise(y);
      Weigh(codes, y, p, weight);
    }
    uint32_t operand[kTiles][4];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sum_[n] += p[n][i];
        weight_sum_[n] += weight[n][i] - kIntegerMagicBits;
      }
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        operand[n][x] =
            ptx::Transpose8x8(__byte_perm(weight[n][2 * x], weight[n][2 * x + 1], 0x4051));
      }
    }
    ValueProducts<kHeadDim, kTiles>(head_.v_pattern, planes + KeyPlanesBytes(), lane_, operand,
                                    value_sums_);
  }

  // Adds the segment's sums to the state.
  __device__ void EndSegment(const std::byte* v_table) {
    constexpr int kEntries = kHeadDim / 8;
    const int g = lane_ / 4;
    const int t = lane_ % 4;
    const __half* scales = reinterpret_cast<const __half*>(v_table) + g * 2 * kEntries;
    const __half* centres = scales + kEntries;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const float sum = SumOverG(sum_[n]);
      const float weight_sum = static_cast<float>(SumOverG(weight_sum_[n]));
      const float factor = ptx::Exp2(folded_reference_[n] - reference_[n]);
      folded_sum_[n] = folded_sum_[n] * factor + sum;
      folded_reference_[n] = reference_[n];
      const int row = 4 * n + t;
#pragma unroll
      for (int i = 0; i < kHeadDim / 16; ++i) {
        const float half =
            0.5f * static_cast<float>(AlignedLevelMax(head_.v_widths >> (4 * (i / 2)) & 15u));
        const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(scales + 2 * i));
        const float2 centre = __half22float2(*reinterpret_cast<const __half2*>(centres + 2 * i));
        const float low = fmaf(256.0f, static_cast<float>(value_sums_[n][i][0]),
                               static_cast<float>(value_sums_[n][i][1]));
        const float high = fmaf(16.0f, static_cast<float>(value_sums_[n][i][2]),
                                static_cast<float>(value_sums_[n][i][3]) * 0.0625f);
        float& out0 = state_.output(row, 16 * i + g);
        float& out1 = state_.output(row, 16 * i + 8 + g);
        out0 = out0 * factor + scale.x * (low - half * weight_sum) + centre.x * sum;
        out1 = out1 * factor + scale.y * (high - half * weight_sum) + centre.y * sum;
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
#pragma unroll
      for (int i = 0; i < kHeadDim / 16; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) value_sums_[n][i][j] = 0;
      }
    }
  }

  __device__ uint32_t KeyPlanesBytes() const {
    // Sum of the nibbles.
    uint32_t widths = (head_.k_widths & 0x0F0F0F0Fu) + (head_.k_widths >> 4 & 0x0F0F0F0Fu);
    widths = widths * 0x01010101u >> 24;
    return 256 * widths;
  }

  // p = 2^(y - reference), and p times V's token scales as integers of 16 bits over
  // kIntegerMagicBits. Not 0 where one of them needs more bits.
  __device__ uint32_t Weigh(const uint4& codes, const float (&y)[kTiles][8], float (&p)[kTiles][8],
                            uint32_t (&weight)[kTiles][8]) const {
    uint32_t over = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t code = __byte_perm(i < 4 ? codes.z : codes.w, 0, 0x4440 + i % 4);
      const float scale = __uint_as_float((code << 20) + (96u << 23));
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        p[n][i] = ptx::Exp2(y[n][i] - reference_[n]);
        weight[n][i] = __float_as_uint(fmaf(p[n][i], scale, kIntegerMagic));
        over |= weight[n][i] & ~(kIntegerMagicBits | 0xFFFFu);
      }
    }
    return over;
  }

  // Raises the references to what `y` needs, and shifts the segment's sums accordingly.
  __device__ void Raise(const float (&y)[kTiles][8]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float largest = y[n][0];
#pragma unroll
      for (int i = 1; i < 8; ++i) largest = fmaxf(largest, y[n][i]);
      const float raised = fmaxf(reference_[n], ceilf(MaxOverG(largest)) - kWeightLog2);
      const float by = raised - reference_[n];  // A whole number, or larger than any sum.
      if (by > 0) {
        sum_[n] *= ptx::Exp2(-by);
        int shift = static_cast<int>(fminf(by, 35.0f));
        weight_sum_[n] = shift < 32 ? weight_sum_[n] >> shift : 0;
        while (shift > 0) {
          // The bits that the high sums lose go to the low ones; seven at a time cannot overflow.
          const int step = min(shift, 7);
          const int32_t lost = (1 << step) - 1;
#pragma unroll
          for (int i = 0; i < kHeadDim / 16; ++i) {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              int32_t& high = value_sums_[n][i][2 * s];
              int32_t& low = value_sums_[n][i][2 * s + 1];
              low = (low + ((high & lost) << 8)) >> step;
              high >>= step;
            }
          }
          shift -= step;
        }
        reference_[n] = raised;
      }
    }
  }

  const DeviceHead& head_;
  const RowLimits& limits_;
  const float soft_cap_;
  const float* const q_;
  const SharedState<kHeadDim> state_;
  const int lane_;

  SegmentQueries<kHeadDim, kTiles> queries_;
  float reference_[kTiles];
  float folded_reference_[kTiles];
  float folded_sum_[kTiles];
  // Of the segment so far, this lane's share.
  float sum_[kTiles];
  uint32_t weight_sum_[kTiles];
  int32_t value_sums_[kTiles][kHeadDim / 16][4];
};

// Units [unit_begin, unit_end) of the cell's `planes` list into `state`, which is clear.
template <int kHeadDim, int kTiles>
__device__ void AttendRange(const AttendCell& cell, uint32_t kv_head, uint32_t header_bytes,
                            uint32_t unit_begin, uint32_t unit_end, const RowLimits& limits,
                            float soft_cap, const WarpMemory<kHeadDim>& memory,
                            Ring<kHeadDim>& ring, const SharedState<kHeadDim>& state, int lane) {
  const DeviceHead& head = cell.heads[kv_head];
  BlockWalk<kHeadDim> walk{cell.planes, &head, kv_head, header_bytes, {}, 0, 0, 0};
  walk.Begin(RunAt(cell.planes, cell.planes_runs, unit_begin, lane), unit_begin,
             unit_end - unit_begin);
  BlockWalk<kHeadDim> ahead = walk;
  const auto load_record = [&] {
    if (ahead.left == 0) return;
    ring.LoadRecord(ahead.record(), head.record_bytes);
    ahead.NextBlock();
  };
  ring.LoadKeyTable(walk.part());
  load_record();
  ring.LoadValueTable(walk.part());
  for (int slot = 1; slot < kRingSlots; ++slot) load_record();

  RangeAttention<kHeadDim, kTiles> attention(head, limits, soft_cap, memory.q, state, lane);
  while (walk.left > 0) {
    ring.WaitKeyTable();
    attention.BeginSegment(memory.k_table);
    __syncwarp();
    const uint32_t blocks = walk.blocks_in_run();
    BlockWalk<kHeadDim> next = walk;
    next.NextRun();
    if (next.left > 0) ring.LoadKeyTable(next.part());
    for (uint32_t i = 0; i < blocks; ++i) {
      const int token = static_cast<int>(walk.block + i) * kBlockTokens;
      const uint32_t position = walk.run.position + token;
      const int first = walk.run.first - token;
      const int end = walk.run.first + walk.run.count - token;
      const bool masked = first > 0 || end < kBlockTokens || position < limits.begin_all ||
                          position + kBlockTokens > limits.end_all;
      attention.AddBlock(ring.WaitRecord(), masked, position, first, end);
      __syncwarp();
      load_record();
    }
    ring.WaitValueTable();
    attention.EndSegment(memory.v_table);
    __syncwarp();
    if (next.left > 0) ring.LoadValueTable(next.part());
    walk = next;
  }
  attention.End();
  __syncwarp();
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_RANGE_CUH_
