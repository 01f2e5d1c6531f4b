#include <algorithm>

#include "gpu/attend_parts.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/products.cuh"
#include "gpu/packkv/round.cuh"
#include "gpu/packkv/value_unit.cuh"
#include "tests/bench/packkv_products_cuda.h"
#include "tests/bench/packkv_steps.cuh"

namespace kvdepot {
namespace {

using packkv::kPackTokens;
using packkv::kProductRows;
using packkv::kRounds;

constexpr int kHeadDim = 128;
constexpr int kKeyBits = 4;
constexpr int kValueBits = 3;
// Warps that share a step of a short context, each with a part of the channels.
constexpr int kTeam = 4;
constexpr int kKeyGroups = packkv::KeyOperand<kHeadDim>::kGroups;
constexpr int kValueQuads = packkv::ValueSums<kHeadDim, 1>::kQuads;
static_assert(kKeyGroups == kTeam && kValueQuads == kTeam, "a warp of a team has one");

// Queries of kGroups groups of a lane's channels, as operand.
template <int kGroups>
struct LaneQueries {
  uint2 words[kGroups];
  // Of row t for lane 4 g + t: what an integer of the operand is, and the sum of these queries.
  float unit;
  float sum;

  // From group `first` on. `q`: of the head. Rows that are not there are the last.
  __device__ __forceinline__ void Load(const __half* q, uint32_t rows, int first, int lane) {
    const __half* const of_row = q + min(lane / 8, rows - 1) * kHeadDim +
                                 lane % 4 * (kHeadDim / packkv::kKeyLanes) +
                                 first * packkv::kNibbleChannels;
    float values[kGroups][packkv::kNibbleChannels];
    float largest = 1e-30f;
    float all = 0;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const uint4 bits = reinterpret_cast<const uint4*>(of_row)[group];
      const uint32_t two[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 value = __half22float2(*reinterpret_cast<const __half2*>(&two[i]));
        values[group][2 * i] = value.x;
        values[group][2 * i + 1] = value.y;
        largest = fmaxf(largest, fmaxf(fabsf(value.x), fabsf(value.y)));
        all += value.x + value.y;
      }
    }
#pragma unroll
    for (int distance = 1; distance < packkv::kKeyLanes; distance *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
      all += __shfl_xor_sync(kAllLanes, all, distance);
    }
    const float units = packkv::kQueryMax / largest;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
#pragma unroll
      for (float& value : values[group]) value *= units;
      words[group] = packkv::KeyOperand<kHeadDim>::Words(values[group], lane);
    }
    unit = __shfl_sync(kAllLanes, largest, 8 * (lane % 4)) / packkv::kQueryMax;
    sum = __shfl_sync(kAllLanes, all, 8 * (lane % 4));
  }
};

// Of one row each lane has four tokens, of several 16 tokens of row t.
template <bool kIsOneRow>
inline constexpr int kLaneTokens = kIsOneRow ? 4 : kPackTokens;

// A group of channels.
template <class Channels>
__device__ __forceinline__ void AddGroup(Channels& channels, uint32_t minima, const uint2& queries,
                                         packkv::KeySums<kHeadDim>& sums) {
  packkv::PackCodes codes[packkv::kNibbleChannels];
#pragma unroll
  for (int i = 0; i < packkv::kNibbleChannels; ++i) codes[i] = channels.Next(i);
  sums.Add(codes, minima, queries);
}

// What a lane's tokens have by its channels, in units.
template <bool kIsOneRow>
__device__ __forceinline__ void TakeSums(const packkv::KeySums<kHeadDim>& sums, int t,
                                         int32_t (&integers)[kLaneTokens<kIsOneRow>]) {
  if constexpr (kIsOneRow) {
    sums.TakeOfOneRow(t, integers);
  } else {
    sums.Take(integers);
  }
}

// A thread block has one step, each of its warps a group of each lane's channels.
template <bool kIsOneRow>
__global__ void __launch_bounds__(32 * kTeam)
    KeyTeamKernel(const __grid_constant__ PackKvTokens of, const __half* q, __half* scores) {
  constexpr int kTokens = kLaneTokens<kIsOneRow>;
  constexpr int kOwn = kTokens / kTeam;  // that a thread adds up
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ uint64_t barrier;
  __shared__ float parts[kTeam][kTokens][32];
  __shared__ float sums_of_queries[kTeam][kProductRows];
  const int lane = threadIdx.x % 32;
  const int warp = static_cast<int>(Uniform(threadIdx.x / 32));
  const int g = lane / 4;
  const int t = lane % 4;
  if (threadIdx.x == 0) ptx::BarrierInit(&barrier);
  ptx::FenceBarrierInit();
  __syncthreads();
  const uint32_t head = blockIdx.x % of.kv_heads;
  const uint32_t index = blockIdx.x / of.kv_heads;
  Steps<false> steps(of, head, index, gridDim.x, shared, &barrier, threadIdx.x == 0);
  cudaGridDependencySynchronize();
  LaneQueries<1> queries;
  queries.Load(q + head * of.rows * kHeadDim, of.rows, warp, lane);
  const packkv::RoundFormat<kHeadDim, packkv::kKeyLanes> format(of.k_bits, lane);
  const Step step = steps.Wait();
  packkv::LaneChannels<kHeadDim, packkv::kKeyLanes, kKeyBits> channels;
  channels.Begin(format, step.Round(g / kRounds, g % kRounds), lane);
  uint32_t minima = channels.NextMinima();
  if (warp > 0) channels.SkipUnread(packkv::kNibbleChannels * warp);
  for (int group = 1; group <= warp; ++group) minima = channels.NextMinima();
  packkv::KeySums<kHeadDim> sums;
  sums.Clear();
  AddGroup(channels, minima, queries.words[0], sums);
  int32_t integers[kTokens];
  TakeSums<kIsOneRow>(sums, t, integers);
#pragma unroll
  for (int i = 0; i < kTokens; ++i)
    parts[warp][i][lane] = static_cast<float>(integers[i]) * queries.unit;
  if (lane < kProductRows) sums_of_queries[warp][lane] = queries.sum;
  __syncthreads();
  float query_sum = 0;
#pragma unroll
  for (int i = 0; i < kTeam; ++i) query_sum += sums_of_queries[i][t];
  const packkv::TokenTable& table = step.table(g / kRounds);
  const int row = kIsOneRow ? 0 : t;
  if (row >= static_cast<int>(of.rows)) return;
  __half* const to = scores + (head * of.rows + row) * static_cast<size_t>(of.tokens) +
                     index * kStepTokens + g / kRounds * kBlockTokens;
#pragma unroll
  for (int i = kOwn * warp; i < kOwn * (warp + 1); ++i) {
    const int place = g % kRounds * kPackTokens + (kIsOneRow ? 4 * t : 0) + i;
    float dot = 0;
#pragma unroll
    for (int k = 0; k < kTeam; ++k) dot += parts[k][i][lane];
    const float scale = __uint_as_float(static_cast<uint32_t>(table.k_scale[place]) << 16);
    to[table.order[place]] =
        __float2half_rn(scale * fmaf(static_cast<float>(table.k_zero[place]), query_sum, dot));
  }
}

// Each warp has steps of its own.
template <int kWarps, bool kIsOneRow>
__global__ void __launch_bounds__(32 * kWarps)
    KeyKernel(const __grid_constant__ PackKvTokens of, const __half* q, __half* scores) {
  constexpr int kTokens = kLaneTokens<kIsOneRow>;
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ uint64_t barriers[kWarps];
  // What is on its way to places in the order of tokens.
  __shared__ __align__(16) __half staged[kWarps][kIsOneRow ? 1 : kProductRows][kStepTokens];
  const int lane = threadIdx.x % 32;
  const int warp = static_cast<int>(Uniform(threadIdx.x / 32));
  const int g = lane / 4;
  const int t = lane % 4;
  if (lane == 0) ptx::BarrierInit(&barriers[warp]);
  ptx::FenceBarrierInit();
  __syncwarp();
  const uint32_t head = blockIdx.x % of.kv_heads;
  const uint32_t blocks = gridDim.x / of.kv_heads;  // of a head
  Steps<false> steps(of, head, warp * blocks + blockIdx.x / of.kv_heads, kWarps * blocks,
                     shared + warp * SlotBytes(of.k_tile_bytes), &barriers[warp], lane == 0);
  cudaGridDependencySynchronize();
  LaneQueries<kKeyGroups> queries;
  queries.Load(q + head * of.rows * kHeadDim, of.rows, 0, lane);
  const packkv::RoundFormat<kHeadDim, packkv::kKeyLanes> format(of.k_bits, lane);
#pragma unroll 1
  while (steps.has()) {
    const Step step = steps.Wait();
    const size_t first_token = steps.index() * kStepTokens;
    packkv::LaneChannels<kHeadDim, packkv::kKeyLanes, kKeyBits> channels;
    channels.Begin(format, step.Round(g / kRounds, g % kRounds), lane);
    packkv::KeySums<kHeadDim> sums;
    sums.Clear();
#pragma unroll
    for (int group = 0; group < kKeyGroups; ++group) {
      AddGroup(channels, channels.NextMinima(), queries.words[group], sums);
      channels.Skip(packkv::kNibbleChannels);
    }
    int32_t integers[kTokens];
    TakeSums<kIsOneRow>(sums, t, integers);
    const Places<kTokens> places(step.table(g / kRounds), false,
                                 g % kRounds * kPackTokens + (kIsOneRow ? 4 * t : 0));
    __syncwarp();
    steps.Next();
    const int row = kIsOneRow ? 0 : t;
    __half* const to = &staged[warp][row][g / kRounds * kBlockTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      to[places.token[i]] =
          __float2half_rn(places.scale[i] * fmaf(places.zero[i], queries.sum,
                                                 static_cast<float>(integers[i]) * queries.unit));
    }
    __syncwarp();
    // Of 16 bytes a lane.
    constexpr int kLanes = kStepTokens / 8;
#pragma unroll 1
    for (int i = lane; i < static_cast<int>(of.rows) * kLanes; i += 32) {
      __half* const of_row = scores + (head * of.rows + i / kLanes) * of.tokens + first_token;
      reinterpret_cast<uint4*>(of_row)[i % kLanes] =
          reinterpret_cast<const uint4*>(staged[warp][i / kLanes])[i % kLanes];
    }
  }
}

// Sums of outputs over kParts parts of a block and, where a head has several, over its blocks.
// `all`: [part][row][kChannels], of the head's channels channel_of(0), ..., where pairs follow each
// other, too; `of_head`: which of `blocks` this is.
template <int kParts, int kChannels, class ChannelOf>
__device__ __forceinline__ void MergeOutputs(float* all, uint32_t rows, const ChannelOf& channel_of,
                                             uint32_t of_head, uint32_t blocks, uint64_t* mailbox,
                                             float* output) {
  constexpr int kOutputs = kProductRows * kChannels;
  const auto output_at = [&](uint32_t i) {
    return output + i / kChannels * kHeadDim + channel_of(i % kChannels);
  };
  for (uint32_t i = threadIdx.x; i < rows * kChannels; i += blockDim.x) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kParts; ++k) sum += all[k * kOutputs + i];
    if (blocks == 1) *output_at(i) = sum;
    all[i] = sum;
  }
  if (blocks == 1) return;
  __syncthreads();
  // Words say themselves that they have arrived (gpu/attend_parts.cuh): pairs of outputs of every
  // block go to the block that adds them up. All blocks are resident.
  const uint32_t pairs = rows * kChannels / 2;
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
  *reinterpret_cast<float2*>(output_at(2 * pair)) = sum;
}

constexpr int RowPairs(bool is_one_row) { return is_one_row ? 1 : kProductRows / 2; }

constexpr uint32_t kQuadOutputs = packkv::kValueLanes * packkv::kQuadChannels;
// Of the kQuadOutputs channels in quad `quad` of each lane's, which one is the i-th.
__device__ __forceinline__ uint32_t ChannelOfQuad(uint32_t i, uint32_t quad) {
  return i / packkv::kQuadChannels * (kHeadDim / packkv::kValueLanes) +
         packkv::kQuadChannels * quad + i % packkv::kQuadChannels;
}

// Who computes a step of a head.
enum class StepOf {
  kWarp,       // a warp
  kBlock,      // a thread block, each of its warps a quad of each lane's channels
  kQuadBlocks  // kTeam thread blocks, each a quad; of every step a warp of theirs
};

template <int kWarps, StepOf kStepOf, bool kIsOneRow>
__global__ void __launch_bounds__(32 * kWarps)
    ValueKernel(const __grid_constant__ PackKvTokens of, const __half* w, float* output,
                uint64_t* words) {
  constexpr bool kIsBlock = kStepOf == StepOf::kBlock;
  constexpr int kReaders = kIsBlock ? 1 : kWarps;
  constexpr int kQuads = kStepOf == StepOf::kWarp ? kValueQuads : 1;
  constexpr int kQuadBlocks = kStepOf == StepOf::kQuadBlocks ? kTeam : 1;
  constexpr int kChannels = kHeadDim / kQuadBlocks;  // of a block
  constexpr int kOutputs = kProductRows * kChannels;
  constexpr int kRowPairs = RowPairs(kIsOneRow);
  constexpr int kTokens = kLaneTokens<kIsOneRow>;
  using Sums = packkv::ValueSums<kQuads * kQuadOutputs, kRowPairs>;
  using Operand = packkv::ValueOperand<kRowPairs>;
  static_assert(!kIsBlock || kWarps == kTeam, "a warp has a quad");
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ uint64_t barriers[kReaders];
  // [reader][row][channel], and room for what arrives from other blocks.
  __shared__ __align__(16) float all[(kReaders + 1) * kOutputs];
  const int lane = threadIdx.x % 32;
  const int warp = static_cast<int>(Uniform(threadIdx.x / 32));
  const int reader = kIsBlock ? 0 : warp;
  const int quad = kIsBlock ? warp : static_cast<int>(blockIdx.x) % kQuadBlocks;
  const bool is_leader = kIsBlock ? threadIdx.x == 0 : lane == 0;
  const uint32_t slot_bytes = SlotBytes(of.v_tile_bytes);
  auto& weights =
      reinterpret_cast<Operand*>(shared + static_cast<size_t>(kReaders) * slot_bytes)[warp];
  const auto sync = [&] { kIsBlock ? __syncthreads() : __syncwarp(); };
  if (is_leader) ptx::BarrierInit(&barriers[reader]);
  ptx::FenceBarrierInit();
  sync();
  const uint32_t blocks = gridDim.x / kQuadBlocks / of.kv_heads;  // of a head
  const uint32_t head = blockIdx.x / kQuadBlocks / blocks;
  const uint32_t of_head = blockIdx.x / kQuadBlocks % blocks;
  Steps<true> steps(of, head, reader * blocks + of_head, kReaders * blocks,
                    shared + reader * slot_bytes, &barriers[reader], is_leader);
  const packkv::RoundFormat<kHeadDim, packkv::kValueLanes> format(of.v_bits, lane);
  const int g = lane / 4;
  const int t = lane % 4;
  const uint32_t row = min(t, of.rows - 1);
  const __half* const from = w + (head * of.rows + row) * static_cast<size_t>(of.tokens);
  float* const outputs = all + reader * kOutputs + (kIsBlock ? kQuadOutputs * quad : 0);
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
    const __half* const of_block = from + steps.index() * kStepTokens + g / kRounds * kBlockTokens;
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
    sync();
  }
  zeros = kIsOneRow ? SumOfWarp(zeros) : SumOverG(zeros);
  take();
  sync();
  if (t < 2 * kRowPairs) {
    for (int i = g; i < static_cast<int>(kQuads * kQuadOutputs); i += 8)
      outputs[t * kChannels + i] += zeros;
  }
  __syncthreads();
  const auto channel_of = [&](uint32_t i) {
    if (kStepOf == StepOf::kWarp) return i;
    return kIsBlock ? ChannelOfQuad(i % kQuadOutputs, i / kQuadOutputs) : ChannelOfQuad(i, quad);
  };
  MergeOutputs<kReaders, kChannels>(all, of.rows, channel_of, of_head, blocks,
                                    words + static_cast<size_t>(head * blocks) * kOutputs,
                                    output + head * of.rows * kHeadDim);
}

template <class... Arguments>
cudaError_t Launch(void (*kernel)(PackKvTokens, Arguments...), uint32_t blocks, int warps,
                   uint32_t shared_bytes, cudaStream_t stream, const PackKvTokens& of,
                   Arguments... arguments) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = of.overlaps_launch_before ? 1 : 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(32 * warps));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, of, arguments...);
}

uint32_t StepsOf(const PackKvTokens& of) { return of.tokens / kStepTokens; }

// As many blocks of a head as are resident at once, at most so that each of a block's readers has a
// step.
template <class Kernel>
uint32_t BlocksOfHead(Kernel kernel, const PackKvTokens& of, int multiprocessors, int warps,
                      int readers, uint32_t shared_bytes) {
  int resident = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes)) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * warps, shared_bytes) !=
          cudaSuccess) {
    return 0;  // and the launch says why
  }
  const uint32_t needed = (StepsOf(of) + static_cast<uint32_t>(readers) - 1) / readers;
  return std::min(static_cast<uint32_t>(resident * multiprocessors) / of.kv_heads, needed);
}

template <bool kIsOneRow>
cudaError_t LaunchKeys(const PackKvTokens& of, const __half* q, __half* scores, int multiprocessors,
                       cudaStream_t stream) {
  const uint32_t slot_bytes = SlotBytes(of.k_tile_bytes);
  if (StepsOf(of) <= 64) {
    return Launch(KeyTeamKernel<kIsOneRow>, StepsOf(of) * of.kv_heads, kTeam, slot_bytes, stream,
                  of, q, scores);
  }
  constexpr int kWarps = 8;
  const auto kernel = KeyKernel<kWarps, kIsOneRow>;
  const uint32_t bytes = kWarps * slot_bytes;
  return Launch(kernel,
                BlocksOfHead(kernel, of, multiprocessors, kWarps, kWarps, bytes) * of.kv_heads,
                kWarps, bytes, stream, of, q, scores);
}

template <int kWarps, StepOf kStepOf, bool kIsOneRow>
cudaError_t LaunchValues(const PackKvTokens& of, const __half* w, float* output,
                         std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  constexpr int kReaders = kStepOf == StepOf::kBlock ? 1 : kWarps;
  const auto kernel = ValueKernel<kWarps, kStepOf, kIsOneRow>;
  const uint32_t bytes =
      kReaders * SlotBytes(of.v_tile_bytes) +
      kWarps * static_cast<uint32_t>(sizeof(packkv::ValueOperand<RowPairs(kIsOneRow)>));
  const uint32_t blocks = kStepOf == StepOf::kQuadBlocks
                              ? kTeam
                              : BlocksOfHead(kernel, of, multiprocessors, kWarps, kReaders, bytes);
  return Launch(kernel, blocks * of.kv_heads, kWarps, bytes, stream, of, w, output,
                reinterpret_cast<uint64_t*>(workspace));
}

template <bool kIsOneRow>
cudaError_t LaunchValues(const PackKvTokens& of, const __half* w, float* output,
                         std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  const uint32_t steps = StepsOf(of);
  const auto launch = steps <= 8                  ? LaunchValues<8, StepOf::kQuadBlocks, kIsOneRow>
                      : steps <= 16               ? LaunchValues<kTeam, StepOf::kBlock, kIsOneRow>
                      : steps <= 64 || !kIsOneRow ? LaunchValues<4, StepOf::kWarp, kIsOneRow>
                                                  : LaunchValues<8, StepOf::kWarp, kIsOneRow>;
  return launch(of, w, output, workspace, multiprocessors, stream);
}

}  // namespace

cudaError_t LaunchKeyProducts(const PackKvTokens& of, const __half* q, __half* scores,
                              int multiprocessors, cudaStream_t stream) {
  return of.rows == 1 ? LaunchKeys<true>(of, q, scores, multiprocessors, stream)
                      : LaunchKeys<false>(of, q, scores, multiprocessors, stream);
}

size_t ValueProductsWorkspaceBytes(int multiprocessors) {
  return sizeof(uint64_t) * kProductRows * kHeadDim * static_cast<size_t>(16 * multiprocessors);
}

cudaError_t LaunchValueProducts(const PackKvTokens& of, const __half* w, float* output,
                                std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  return of.rows == 1 ? LaunchValues<true>(of, w, output, workspace, multiprocessors, stream)
                      : LaunchValues<false>(of, w, output, workspace, multiprocessors, stream);
}

}  // namespace kvdepot
