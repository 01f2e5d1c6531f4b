#include <algorithm>
#include <cstdlib>

#include "gpu/attend_parts.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/products.cuh"
#include "gpu/packkv/round.cuh"
#include "gpu/packkv/value_unit.cuh"
#include "tests/bench/packkv_products_cuda.h"

namespace kvdepot {
namespace {

using packkv::kPackTokens;
using packkv::kProductRows;
using packkv::kRounds;

constexpr int kHeadDim = 128;
constexpr int kKeyBits = 4;
constexpr int kValueBits = 3;
constexpr uint32_t kStepBlocks = 2;
constexpr uint32_t kStepTokens = kStepBlocks * kBlockTokens;
constexpr uint32_t kSegmentSteps = kSegmentTokensMax / kStepTokens;
constexpr uint32_t kTablesBytes = kStepBlocks * sizeof(packkv::TokenTable);
// Warps that share a step of a short context, each with a part of the channels.
constexpr int kTeam = 4;
constexpr int kKeyGroups = packkv::KeyOperand<kHeadDim>::kGroups;
constexpr int kValueQuads = packkv::ValueSums<kHeadDim, 1>::kQuads;
static_assert(kKeyGroups == kTeam && kValueQuads == kTeam, "a warp of a team has one");

// Of a step: what the directory says of its rounds, tables, tiles.
__host__ __device__ constexpr uint32_t SlotBytes(uint32_t tile_bytes) {
  return sizeof(uint4) + kTablesBytes + kStepBlocks * tile_bytes + 16;
}

// A step in shared memory.
struct Step {
  const std::byte* slot;
  uint2 units[kStepBlocks];

  __device__ __forceinline__ explicit Step(const std::byte* at) : slot(at) {
    const uint4 words = *reinterpret_cast<const uint4*>(at);
    units[0] = {words.x, words.y};
    units[1] = {words.z, words.w};
  }
  __device__ __forceinline__ const packkv::TokenTable& table(int block) const {
    return reinterpret_cast<const packkv::TokenTable*>(slot + sizeof(uint4))[block];
  }
  __device__ __forceinline__ const std::byte* Round(int block, int round) const {
    const std::byte* const tiles = slot + sizeof(uint4) + kTablesBytes;
    return block == 0 ? tiles + packkv::RoundBegin(units[0], round)
                      : tiles + packkv::TileBytes(units[0]) + packkv::RoundBegin(units[1], round);
  }
};

// A head's steps index, index + stride, ... on their way through kSlots slots, K's or V's.
template <int kSlots, bool kIsValue>
class Steps {
 public:
  // `is_leader`: of the one thread that asks for them.
  __device__ Steps(const PackKvTokens& of, uint32_t head, uint32_t index, uint32_t stride,
                   std::byte* slots, uint32_t slot_bytes, uint64_t* barriers, bool is_leader)
      : of_(of),
        head_(head),
        stride_(stride),
        count_(of.tokens / kStepTokens),
        slots_(slots),
        slot_bytes_(slot_bytes),
        barriers_(barriers),
        is_leader_(is_leader),
        policy_(ptx::EvictFirst()),
        ahead_(index),
        index_(index) {
    body_ = Body();
    Look();
#pragma unroll
    for (int i = 0; i < kSlots; ++i) Load();
  }
  __device__ bool has() const { return index_ < count_; }
  __device__ uint32_t index() const { return index_; }
  // The step, once it is there.
  __device__ __forceinline__ Step Wait() {
    ptx::BarrierWait(&barriers_[slot_], phase_);
    return Step(slots_ + slot_ * slot_bytes_);
  }
  // Nobody reads it any more.
  __device__ __forceinline__ void Next() {
    Load();
    index_ += stride_;
    if (++slot_ == kSlots) {
      slot_ = 0;
      phase_ ^= 1;
    }
  }

 private:
  __device__ __forceinline__ const std::byte* Body() const {
    return ahead_ < count_ ? of_.bodies[ahead_ / kSegmentSteps] : nullptr;
  }
  // Each of the loads that follow from each other is made a step ahead of the next.
  __device__ __forceinline__ void Look() {
    looks_ = ahead_ < count_;
    if (looks_) {
      const uint32_t block = ahead_ % kSegmentSteps * kStepBlocks;
      tables_ = body_ + packkv::TokenTableAt(static_cast<int>(block));
      looked_at_ = body_;
#pragma unroll
      for (uint32_t i = 0; i < kStepBlocks; ++i) {
        const std::byte* const entry =
            body_ + packkv::DirectoryAt(kSegmentTokensMax / kBlockTokens) +
            ((block + i) * of_.kv_heads + head_) * packkv::EntryBytes(kPackTokens);
        begins_[i] = reinterpret_cast<const uint32_t*>(entry)[kIsValue ? 1 : 0];
        units_[i] = *reinterpret_cast<const uint2*>(
            entry + packkv::EntryUnitsAt(!kIsValue, kPackTokens));
      }
    }
    ahead_ += stride_;
    body_ = Body();
  }
  __device__ __forceinline__ void Load() {
    if (!looks_) return;
    if (is_leader_) {
      std::byte* const slot = slots_ + load_ * slot_bytes_;
      uint64_t* const barrier = &barriers_[load_];
      *reinterpret_cast<uint4*>(slot) = {units_[0].x, units_[0].y, units_[1].x, units_[1].y};
      const uint32_t first = packkv::TileBytes(units_[0]);
      const uint32_t second = packkv::TileBytes(units_[1]);
      ptx::ExpectBytes(barrier, kTablesBytes + first + second);
      std::byte* to = slot + sizeof(uint4);
      ptx::BulkCopy(to, tables_, kTablesBytes, barrier, policy_);
      to += kTablesBytes;
      ptx::BulkCopy(to, looked_at_ + packkv::kUnitBytes * begins_[0], first, barrier, policy_);
      ptx::BulkCopy(to + first, looked_at_ + packkv::kUnitBytes * begins_[1], second, barrier,
                    policy_);
    }
    load_ = load_ + 1 == kSlots ? 0 : load_ + 1;
    Look();
  }

  const PackKvTokens& of_;
  const uint32_t head_;
  const uint32_t stride_;
  const uint32_t count_;
  std::byte* const slots_;
  const uint32_t slot_bytes_;
  uint64_t* const barriers_;
  const bool is_leader_;
  const uint64_t policy_;
  uint32_t ahead_;
  uint32_t index_;
  const std::byte* body_;  // of step `ahead_`
  bool looks_ = false;
  const std::byte* looked_at_;
  const std::byte* tables_;
  uint32_t begins_[kStepBlocks];
  uint2 units_[kStepBlocks];
  uint32_t load_ = 0;  // slot of the next load
  uint32_t slot_ = 0;  // and of the next step
  uint32_t phase_ = 0;
};

// A step and a zero point of kCount places that follow each other, and their tokens.
template <int kCount>
struct Places {
  float scale[kCount];
  float zero[kCount];
  uint32_t token[kCount];

  __device__ __forceinline__ Places(const packkv::TokenTable& table, bool is_value, int place) {
    const uint16_t* const scales = (is_value ? table.v_scale : table.k_scale) + place;
    const int16_t* const zeros = (is_value ? table.v_zero : table.k_zero) + place;
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint2 four = *reinterpret_cast<const uint2*>(scales + i);
      const uint2 four_zeros = *reinterpret_cast<const uint2*>(zeros + i);
      const uint32_t order = *reinterpret_cast<const uint32_t*>(table.order + place + i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t two = k < 2 ? four.x : four.y;
        const uint32_t two_zeros = k < 2 ? four_zeros.x : four_zeros.y;
        scale[i + k] = __uint_as_float(k % 2 == 0 ? two << 16 : two & 0xFFFF0000u);
        zero[i + k] = static_cast<float>(
            static_cast<int32_t>(k % 2 == 0 ? two_zeros << 16 : two_zeros) >> 16);
        token[i + k] = order >> (8 * k) & 0xFFu;
      }
    }
  }
};

// Queries of a head as operand, their units and sums.
struct KeyQueries {
  alignas(16) float rows[kProductRows][kHeadDim];
  float2 numbers[kProductRows];

  // All warps of a block, at least kProductRows. Leaves the operand where rows were.
  __device__ __forceinline__ void Load(const __half* q, uint32_t count) {
    const int lane = threadIdx.x % 32;
    const uint32_t row = threadIdx.x / 32;
    if (row < kProductRows) {
      // Rows that are not there are the last.
      const uint2 bits =
          reinterpret_cast<const uint2*>(q + min(row, count - 1) * kHeadDim)[lane];
      const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
      const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
      const float largest = fmaxf(
          MaxOfWarp(fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y)))), 1e-30f);
      const float sum = SumOfWarp(a.x + a.y + b.x + b.y);
      const float units = packkv::kQueryMax / largest;
      reinterpret_cast<float4*>(rows[row])[lane] = {a.x * units, a.y * units, b.x * units,
                                                    b.y * units};
      if (lane == 0) numbers[row] = {largest / packkv::kQueryMax, sum};
    }
    __syncthreads();
    if (row == 0) operand().Make(rows[0], kHeadDim, lane);
    __syncthreads();
  }
  __device__ packkv::KeyOperand<kHeadDim>& operand() {
    return *reinterpret_cast<packkv::KeyOperand<kHeadDim>*>(rows);
  }
};

// A group of channels.
template <class Channels>
__device__ __forceinline__ void AddGroup(Channels& channels, uint32_t minima, const uint2& queries,
                                         packkv::KeySums<kHeadDim>& sums) {
  packkv::PackCodes codes[packkv::kNibbleChannels];
#pragma unroll
  for (int i = 0; i < packkv::kNibbleChannels; ++i) codes[i] = channels.Next(i);
  sums.Add(codes, minima, queries);
}

// kWarpsOfStep 1: each warp has steps of its own; kTeam: the thread block is a team. Of one row each
// lane has four tokens, of several 16 tokens of one of them.
template <int kWarps, int kWarpsOfStep, int kSlots, bool kIsOneRow>
__global__ void __launch_bounds__(32 * kWarps)
    KeyKernel(const __grid_constant__ PackKvTokens of, const __half* q, __half* scores) {
  static_assert(kWarpsOfStep == 1 || kWarpsOfStep == kWarps, "teams are whole blocks");
  constexpr bool kIsTeam = kWarpsOfStep > 1;
  constexpr int kReaders = kWarps / kWarpsOfStep;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ KeyQueries queries;
  __shared__ uint64_t barriers[kReaders][kSlots];
  // What is on its way to places in the order of tokens; a team's sums, by four tokens, before.
  __shared__ __align__(16) __half staged[kReaders][kProductRows][kStepTokens];
  __shared__ int4 parts[kIsTeam ? kWarps : 1][kTeam][32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int reader = kIsTeam ? 0 : warp;
  const uint32_t slot_bytes = SlotBytes(of.k_tile_bytes);
  const bool is_leader = kIsTeam ? threadIdx.x == 0 : lane == 0;
  if (is_leader)
    for (int i = 0; i < kSlots; ++i) ptx::BarrierInit(&barriers[reader][i]);
  ptx::FenceBarrierInit();
  const auto sync = [&] { kIsTeam ? __syncthreads() : __syncwarp(); };
  sync();
  const uint32_t head = blockIdx.x % of.kv_heads;
  const uint32_t blocks = gridDim.x / of.kv_heads;  // of a head
  Steps<kSlots, false> steps(of, head, reader * blocks + blockIdx.x / of.kv_heads,
                             kReaders * blocks, shared + reader * kSlots * slot_bytes, slot_bytes,
                             barriers[reader], is_leader);
  cudaGridDependencySynchronize();
  queries.Load(q + head * of.rows * kHeadDim, of.rows);
  const int g = lane / 4;
  const int t = lane % 4;
  const float2 numbers = queries.numbers[t];
  const packkv::RoundFormat<kHeadDim, packkv::kKeyLanes> format(of.k_bits, lane);
#pragma unroll 1
  for (; steps.has(); steps.Next()) {
    const Step step = steps.Wait();
    packkv::LaneChannels<kHeadDim, packkv::kKeyLanes, kKeyBits> channels;
    channels.Begin(format, step.Round(g / kRounds, g % kRounds), lane);
    packkv::KeySums<kHeadDim> sums;
    sums.Clear();
    int32_t integers[kPackTokens];
    const packkv::TokenTable& table = step.table(g / kRounds);
    const int place = g % kRounds * kPackTokens;
    const auto score = [&](int32_t integer, float scale, float zero) {
      return __float2half_rn(scale *
                             fmaf(zero, numbers.y, static_cast<float>(integer) * numbers.x));
    };
    __half* const to = &staged[reader][t][g / kRounds * kBlockTokens];
    if constexpr (kIsTeam) {
      uint32_t minima = channels.NextMinima();
      if (warp > 0) channels.SkipUnread(packkv::kNibbleChannels * warp);
      for (int group = 1; group <= warp; ++group) minima = channels.NextMinima();
      AddGroup(channels, minima, queries.operand().words[warp][lane], sums);
      sums.Take(integers);
#pragma unroll
      for (int i = 0; i < kTeam; ++i)
        parts[warp][i][lane] = {integers[4 * i], integers[4 * i + 1], integers[4 * i + 2],
                                integers[4 * i + 3]};
      const Places<4> places(table, false, place + 4 * warp);
      __syncthreads();
      int4 sum = parts[0][warp][lane];
#pragma unroll
      for (int i = 1; i < kTeam; ++i) {
        const int4 part = parts[i][warp][lane];
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
      }
      const int32_t own[4] = {sum.x, sum.y, sum.z, sum.w};
      if (t < of.rows) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to[places.token[i]] = score(own[i], places.scale[i], places.zero[i]);
      }
    } else {
#pragma unroll 1
      for (int group = 0; group < kKeyGroups; ++group) {
        AddGroup(channels, channels.NextMinima(), queries.operand().words[group][lane], sums);
        channels.Skip(packkv::kNibbleChannels);
      }
      if constexpr (kIsOneRow) {
        int32_t own[4];
        sums.TakeOfOneRow(t, own);
        const Places<4> places(table, false, place + 4 * t);
        __half* const to_row = &staged[reader][0][g / kRounds * kBlockTokens];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to_row[places.token[i]] = score(own[i], places.scale[i], places.zero[i]);
      } else {
        sums.Take(integers);
        const Places<kPackTokens> places(table, false, place);
        if (t < of.rows) {
#pragma unroll
          for (int i = 0; i < kPackTokens; ++i)
            to[places.token[i]] = score(integers[i], places.scale[i], places.zero[i]);
        }
      }
    }
    sync();
    // Of 16 bytes a lane.
    constexpr int kLanes = kStepTokens / 8;
    const int first = kIsTeam ? threadIdx.x : lane;
    for (int i = first; i < static_cast<int>(of.rows) * kLanes; i += 32 * kWarpsOfStep) {
      const size_t row = head * of.rows + i / kLanes;
      reinterpret_cast<uint4*>(scores + row * of.tokens + steps.index() * kStepTokens)[i % kLanes] =
          reinterpret_cast<const uint4*>(staged[reader][i / kLanes])[i % kLanes];
    }
  }
}

// Sums of outputs over a block's warps and, where a head has several, over its blocks.
// `all`: [warp][row][channel]; channel_of(c): that of the head; pairs follow each other there, too.
// `of_head`: which of `blocks` this is.
template <int kWarps, int kChannels, class ChannelOf>
__device__ __forceinline__ void MergeOutputs(float* all, uint32_t rows, uint32_t of_head,
                                             uint32_t blocks, uint64_t* mailbox, float* output,
                                             const ChannelOf& channel_of) {
  constexpr int kOutputs = kProductRows * kChannels;
  const uint32_t count = rows * kChannels;
  const auto address = [&](uint32_t i) {
    return i / kChannels * kHeadDim + channel_of(i % kChannels);
  };
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kWarps; ++k) sum += all[k * kOutputs + i];
    if (blocks == 1) output[address(i)] = sum;
    all[i] = sum;
  }
  if (blocks == 1) return;
  __syncthreads();
  // Words say themselves that they have arrived (gpu/attend_parts.cuh): pairs of outputs of every
  // block go to the block that adds them up. All blocks are resident.
  const uint32_t pairs = count / 2;
  const uint32_t own = (pairs + blocks - 1) / blocks;
  for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x)
    TwoWords::Send(mailbox + of_head * kOutputs + 2 * i, all[2 * i], all[2 * i + 1]);
  __syncthreads();
  float2* const arrived = reinterpret_cast<float2*>(all);  // [block][pair of own]
  for (uint32_t i = threadIdx.x; i < own * blocks; i += blockDim.x) {
    const uint32_t pair = of_head * own + i % own;
    if (pair >= pairs) continue;
    uint64_t* const at = mailbox + i / own * kOutputs + 2 * pair;
    TwoWords two;
    do {
      two.Load(at);
    } while (!two.arrived());
    TwoWords::Clear(at);
    arrived[i] = {two.first(), two.second()};
  }
  __syncthreads();
  const uint32_t pair = of_head * own + threadIdx.x;
  if (threadIdx.x >= own || pair >= pairs) return;
  float2 sum = {0, 0};
  for (uint32_t k = 0; k < blocks; ++k) {
    const float2 part = arrived[k * own + threadIdx.x];
    sum = {sum.x + part.x, sum.y + part.y};
  }
  *reinterpret_cast<float2*>(output + address(2 * pair)) = sum;
}

// A block has steps of one head; with kIsTeam of one of its quads of each lane's channels, too.
template <int kWarps, bool kIsTeam, int kSlots, bool kIsOneRow>
__global__ void __launch_bounds__(32 * kWarps)
    ValueKernel(const __grid_constant__ PackKvTokens of, const __half* w, float* output,
                uint64_t* words) {
  constexpr int kQuads = kIsTeam ? 1 : kValueQuads;
  constexpr int kShareChannels = packkv::kQuadChannels * kQuads;  // of a lane
  constexpr int kChannels = packkv::kValueLanes * kShareChannels;
  constexpr int kOutputs = kProductRows * kChannels;
  constexpr int kRowPairs = kIsOneRow ? 1 : kProductRows / 2;
  constexpr int kTokens = kIsOneRow ? 4 : kPackTokens;  // of a lane
  using Sums = packkv::ValueSums<kChannels, kRowPairs>;
  using Operand = packkv::ValueOperand<kRowPairs>;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ uint64_t barriers[kWarps][kSlots];
  __shared__ __align__(16) float all[kWarps * kOutputs];  // [warp][row][channel]
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const uint32_t slot_bytes = SlotBytes(of.v_tile_bytes);
  std::byte* const mine = shared + warp * (kSlots * slot_bytes + sizeof(Operand));
  auto& weights = *reinterpret_cast<Operand*>(mine + kSlots * slot_bytes);
  if (lane == 0)
    for (int i = 0; i < kSlots; ++i) ptx::BarrierInit(&barriers[warp][i]);
  ptx::FenceBarrierInit();
  __syncwarp();
  const int quad = kIsTeam ? blockIdx.x % kTeam : 0;
  const uint32_t block = kIsTeam ? blockIdx.x / kTeam : blockIdx.x;
  const uint32_t blocks = gridDim.x / of.kv_heads / (kIsTeam ? kTeam : 1);  // of a head
  const uint32_t head = block / blocks;
  Steps<kSlots, true> steps(of, head, warp * blocks + block % blocks, kWarps * blocks, mine,
                            slot_bytes, barriers[warp], lane == 0);
  const packkv::RoundFormat<kHeadDim, packkv::kValueLanes> format(of.v_bits, lane);
  const int g = lane / 4;
  const int t = lane % 4;
  const uint32_t row = min(t, of.rows - 1);
  const __half* const from = w + (head * of.rows + row) * static_cast<size_t>(of.tokens);
  float* const outputs = all + warp * kOutputs;
  Sums sums;
  sums.Clear();
  packkv::ValueUnit unit;
  float zeros = 0;
  int steps_in_sums = 0;
  bool has_outputs = false;
  const auto take = [&] {
    float weight_of_pair[kRowPairs];
#pragma unroll
    for (int pair = 0; pair < kRowPairs; ++pair)
      weight_of_pair[pair] = __shfl_sync(kAllLanes, unit.weight(), 2 * pair + t / 2);
    sums.ForEach(lane, [&](int r, int channel, float sum) {
      float& to = outputs[r * kChannels + channel];
      to = fmaf(sum, weight_of_pair[r / 2], has_outputs ? to : 0.0f);
    });
    sums.Clear();
    steps_in_sums = 0;
    has_outputs = true;
  };
  cudaGridDependencySynchronize();
#pragma unroll 1
  for (; steps.has(); steps.Next()) {
    const Step step = steps.Wait();
    const Places<kTokens> places(step.table(g / kRounds), true,
                                 g % kRounds * kPackTokens + (kIsOneRow ? 4 * t : 0));
    const __half* const of_block =
        from + steps.index() * kStepTokens + g / kRounds * kBlockTokens;
    float chosen[kTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) chosen[i] = __half2float(of_block[places.token[i]]);
    packkv::LaneChannels<kHeadDim, packkv::kValueLanes, kValueBits> channels[kStepBlocks];
#pragma unroll
    for (int b = 0; b < static_cast<int>(kStepBlocks); ++b) {
      channels[b].Begin(format, step.Round(b, t), lane);
      if (quad > 0) channels[b].SkipUnread(packkv::kQuadChannels * quad);
    }
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      chosen[i] *= places.scale[i];
      largest = fmaxf(largest, chosen[i]);
    }
    largest = kIsOneRow ? MaxOfWarp(largest) : MaxOverG(largest);
    if (__any_sync(kAllLanes, !unit.Holds(largest)) || steps_in_sums == packkv::kValueStepsMax) {
      if (steps_in_sums > 0) take();
      unit.Grow(largest);
    }
    ++steps_in_sums;
    const float integer = unit.integer();
    float of_step = 0;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      chosen[i] = fmaf(chosen[i], integer, packkv::kWeightBias);
      of_step = fmaf(chosen[i] - packkv::kWeightBias, places.zero[i], of_step);
    }
    zeros = fmaf(of_step, unit.weight(), zeros);
    if constexpr (kIsOneRow) {
      weights.MakeOfOneRow(chosen, lane);
    } else {
      weights.Make(chosen, lane);
    }
    uint32_t minima[kStepBlocks];
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
      packkv::PackCodes codes[kStepBlocks][packkv::kQuadChannels];
#pragma unroll
      for (int b = 0; b < static_cast<int>(kStepBlocks); ++b) {
        if (k % 2 == 0) {
          minima[b] = channels[b].NextMinima();
          if (quad > 1) minima[b] = channels[b].NextMinima();
          minima[b] >>= 16 * (quad % 2);
        } else {
          minima[b] >>= 16;
        }
#pragma unroll
        for (int i = 0; i < packkv::kQuadChannels; ++i)
          codes[b][i] = channels[b].Next(packkv::kQuadChannels * k + i);
      }
      sums.Add(k, codes[0], codes[1], minima[0], minima[1], weights, lane);
    }
    __syncwarp();
  }
  zeros = kIsOneRow ? SumOfWarp(zeros) : SumOverG(zeros);
  take();
  __syncwarp();
  if (t < 2 * kRowPairs) {
    for (int channel = g; channel < kChannels; channel += 8)
      outputs[t * kChannels + channel] += zeros;
  }
  __syncthreads();
  // Of a team only the channels of a quad follow each other.
  MergeOutputs<kWarps, kChannels>(
      all, of.rows, block % blocks, blocks, words + static_cast<size_t>(head * blocks) * kOutputs,
      output + head * of.rows * kHeadDim, [&](uint32_t channel) {
        if (!kIsTeam) return channel;
        return channel / packkv::kQuadChannels * (kHeadDim / packkv::kValueLanes) +
               packkv::kQuadChannels * quad + channel % packkv::kQuadChannels;
      });
}

// Behind another launch, whose end it waits for on the device.
template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), uint32_t blocks, int warps, uint32_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(32 * warps));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

uint32_t StepsOf(const PackKvTokens& of) { return of.tokens / kStepTokens; }

// Of a head: as many as are resident at once, at most so that each warp has a step.
uint32_t BlocksOfHead(const PackKvTokens& of, int resident, int warps) {
  const uint32_t needed = (StepsOf(of) + static_cast<uint32_t>(warps) - 1) / warps;
  return std::min(static_cast<uint32_t>(resident) / of.kv_heads, needed);
}

template <int kWarps, int kSlots, int kBlocks, bool kIsOneRow>
cudaError_t LaunchKeys(const PackKvTokens& of, const __half* q, __half* scores, int multiprocessors,
                       cudaStream_t stream) {
  return Launch(KeyKernel<kWarps, 1, kSlots, kIsOneRow>,
                BlocksOfHead(of, kBlocks * multiprocessors, kWarps) * of.kv_heads, kWarps,
                kWarps * kSlots * SlotBytes(of.k_tile_bytes), stream, of, q, scores);
}

template <bool kIsOneRow>
uint32_t ValueWarpBytes(const PackKvTokens& of, int slots) {
  return static_cast<uint32_t>(slots) * SlotBytes(of.v_tile_bytes) +
         static_cast<uint32_t>(sizeof(packkv::ValueOperand<kIsOneRow ? 1 : kProductRows / 2>));
}

template <int kWarps, int kSlots, int kBlocks, bool kIsOneRow>
cudaError_t LaunchValues(const PackKvTokens& of, const __half* w, float* output,
                         std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  return Launch(ValueKernel<kWarps, false, kSlots, kIsOneRow>,
                BlocksOfHead(of, kBlocks * multiprocessors, kWarps) * of.kv_heads, kWarps,
                kWarps * ValueWarpBytes<kIsOneRow>(of, kSlots), stream, of, w, output,
                reinterpret_cast<uint64_t*>(workspace));
}

template <int kWarps, bool kIsOneRow>
cudaError_t LaunchValueTeams(const PackKvTokens& of, const __half* w, float* output,
                             std::byte* workspace, cudaStream_t stream) {
  return Launch(ValueKernel<kWarps, true, 1, kIsOneRow>, of.kv_heads * kTeam, kWarps,
                kWarps * ValueWarpBytes<kIsOneRow>(of, 1), stream, of, w, output,
                reinterpret_cast<uint64_t*>(workspace));
}

int Tune(const char* name, int otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

template <bool kIsOneRow>
cudaError_t LaunchKeys(const PackKvTokens& of, const __half* q, __half* scores,
                       int multiprocessors, cudaStream_t stream) {
  if (StepsOf(of) <= static_cast<uint32_t>(Tune("KEY_TEAMS", 64))) {
    return Launch(KeyKernel<kTeam, kTeam, 1, kIsOneRow>, StepsOf(of) * of.kv_heads, kTeam,
                  SlotBytes(of.k_tile_bytes), stream, of, q, scores);
  }
  switch (Tune("KEY", 2)) {
    case 1:
      return LaunchKeys<16, 1, 1, kIsOneRow>(of, q, scores, multiprocessors, stream);
    case 2:
      return LaunchKeys<8, 1, 2, kIsOneRow>(of, q, scores, multiprocessors, stream);
    case 3:
      return LaunchKeys<8, 1, 3, kIsOneRow>(of, q, scores, multiprocessors, stream);
    default:
      return LaunchKeys<8, 2, 1, kIsOneRow>(of, q, scores, multiprocessors, stream);
  }
}

template <bool kIsOneRow>
cudaError_t LaunchValues(const PackKvTokens& of, const __half* w, float* output,
                         std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  const uint32_t steps = StepsOf(of);
  const uint32_t teams = static_cast<uint32_t>(Tune("VALUE_TEAMS", 16));
  if (steps <= 8 && steps <= teams)
    return LaunchValueTeams<8, kIsOneRow>(of, w, output, workspace, stream);
  if (steps <= teams) return LaunchValueTeams<16, kIsOneRow>(of, w, output, workspace, stream);
  switch (Tune("VALUE", 0)) {
    case 1:
      return LaunchValues<8, 1, 1, kIsOneRow>(of, w, output, workspace, multiprocessors, stream);
    case 2:
      return LaunchValues<8, 1, 2, kIsOneRow>(of, w, output, workspace, multiprocessors, stream);
    case 3:
      return LaunchValues<4, 1, 2, kIsOneRow>(of, w, output, workspace, multiprocessors, stream);
    default:
      return LaunchValues<8, 2, 1, kIsOneRow>(of, w, output, workspace, multiprocessors, stream);
  }
}

}  // namespace

cudaError_t LaunchKeyProducts(const PackKvTokens& of, const __half* q, __half* scores,
                              int multiprocessors, cudaStream_t stream) {
  return of.rows == 1 ? LaunchKeys<true>(of, q, scores, multiprocessors, stream)
                      : LaunchKeys<false>(of, q, scores, multiprocessors, stream);
}

size_t ValueProductsWorkspaceBytes(int multiprocessors) {
  return sizeof(uint64_t) * kProductRows * kHeadDim * static_cast<size_t>(2 * multiprocessors);
}

cudaError_t LaunchValueProducts(const PackKvTokens& of, const __half* w, float* output,
                                std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  return of.rows == 1
             ? LaunchValues<true>(of, w, output, workspace, multiprocessors, stream)
             : LaunchValues<false>(of, w, output, workspace, multiprocessors, stream);
}

}  // namespace kvdepot
