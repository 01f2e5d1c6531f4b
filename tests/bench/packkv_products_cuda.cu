#include <algorithm>

#include "gpu/attend_parts.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/packkv/products.cuh"
#include "gpu/packkv/round.cuh"
#include "gpu/packkv/value_unit.cuh"
#include "tests/bench/packkv_products_cuda.h"

namespace kvdepot {
namespace {

using packkv::kRounds;

constexpr int kHeadDim = 128;
constexpr int kKeyBits = 4;
constexpr int kValueBits = 3;
constexpr int kWarps = 8;
// Thread blocks of a multiprocessor.
constexpr int kKeyBlocks = 2;
constexpr int kValueBlocks = 2;
constexpr uint32_t kSegmentBlocks = kSegmentTokensMax / kBlockTokens;
constexpr int kSlots = 2;

// A warp's shared memory.
constexpr uint32_t kQueryBytes = packkv::kProductRows * kHeadDim * 4;
constexpr uint32_t kExchange = packkv::kExchangeBytes;
constexpr uint32_t kOutputBytes = packkv::kProductRows * kHeadDim * 4;
constexpr uint32_t kSlotSlack = 16;  // a round's fields are read in whole words

// Of so many rounds of a tile.
__host__ __device__ constexpr uint32_t SlotBytes(uint32_t code_bits, uint32_t tile_bytes,
                                                 int rounds) {
  const uint32_t most = rounds * packkv::RoundBytesMax(kHeadDim, static_cast<int>(code_bits));
  return (most < tile_bytes ? most : tile_bytes) + kSlotSlack;
}

// Rounds of a tile that follow each other, as a warp's unit of work.
template <int kPieceRounds>
struct Piece {
  const std::byte* body;
  uint32_t block;  // of the body
  const std::byte* at;
  uint32_t bytes;
  uint16_t units[kPieceRounds];
};

// `body`: of piece `index`.
template <int kPieceRounds, bool kIsValue>
__device__ __forceinline__ Piece<kPieceRounds> PieceAt(const PackKvTokens& of,
                                                       const std::byte* body, uint32_t head,
                                                       uint32_t index) {
  constexpr uint32_t kPieces = kRounds / kPieceRounds;
  const uint32_t part = index % kPieces;
  Piece<kPieceRounds> piece;
  piece.body = body;
  piece.block = index / kPieces % kSegmentBlocks;
  const std::byte* const entry =
      piece.body + packkv::DirectoryAt(kSegmentBlocks) +
      (piece.block * of.kv_heads + head) * packkv::EntryBytes(packkv::kPackTokens);
  const uint2 begins = *reinterpret_cast<const uint2*>(entry);
  const uint2 units = *reinterpret_cast<const uint2*>(entry + (kIsValue ? 16 : 8));
  uint32_t skipped = 0;
  uint32_t all = 0;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const uint32_t word = r < 2 ? units.x : units.y;
    const uint32_t count = r % 2 == 0 ? word & 0xFFFFu : word >> 16;
    const int own = r - static_cast<int>(part) * kPieceRounds;
    if (own < 0) skipped += count;
#pragma unroll
    for (int i = 0; i < kPieceRounds; ++i) {
      if (own != i) continue;
      piece.units[i] = static_cast<uint16_t>(count);
      all += count;
    }
  }
  piece.at = piece.body + packkv::kUnitBytes * ((kIsValue ? begins.y : begins.x) + skipped);
  piece.bytes = packkv::kUnitBytes * all;
  return piece;
}

// A warp's pieces of one head: index, index + step, ... below `count`, through two slots.
template <int kPieceRounds, bool kIsValue>
class Pieces {
 public:
  __device__ Pieces(const PackKvTokens& of, uint32_t head, uint32_t index, uint32_t step,
                    std::byte* slots, uint32_t slot_bytes, uint64_t* barriers, int lane)
      : of_(of),
        head_(head),
        ahead_(index),
        step_(step),
        count_(of.tokens / kBlockTokens * (kRounds / kPieceRounds)),
        slots_(slots),
        slot_bytes_(slot_bytes),
        barriers_(barriers),
        is_leader_(lane == 0),
        policy_(ptx::EvictFirst()) {
    body_ahead_ = Body(ahead_);
    Look();
    Load();
  }
  __device__ bool has() const { return has_; }
  // What Next is going to return.
  __device__ const Piece<kPieceRounds>& next() const { return loaded_; }
  // The next piece, once it is there; the one after is under way. All lanes.
  __device__ __forceinline__ Piece<kPieceRounds> Next(const std::byte** data) {
    const Piece<kPieceRounds> piece = loaded_;
    const uint32_t slot = slot_ ^ 1u;
    Load();
    ptx::BarrierWait(&barriers_[slot], phases_ >> slot & 1u);
    phases_ ^= 1u << slot;
    *data = slots_ + slot * slot_bytes_;
    return piece;
  }

 private:
  __device__ __forceinline__ const std::byte* Body(uint32_t index) const {
    constexpr uint32_t kSegmentPieces = kSegmentBlocks * (kRounds / kPieceRounds);
    return index < count_ ? of_.bodies[index / kSegmentPieces] : nullptr;
  }
  // Each of the loads that follow from each other is made a piece ahead of the next.
  __device__ __forceinline__ void Look() {
    looks_ = ahead_ < count_;
    if (looks_) looked_at_ = PieceAt<kPieceRounds, kIsValue>(of_, body_ahead_, head_, ahead_);
    ahead_ += step_;
    body_ahead_ = Body(ahead_);
  }
  __device__ __forceinline__ void Load() {
    has_ = looks_;
    if (!looks_) return;
    loaded_ = looked_at_;
    if (is_leader_)
      ptx::BulkLoad(slots_ + slot_ * slot_bytes_, loaded_.at, loaded_.bytes, &barriers_[slot_],
                    policy_);
    slot_ ^= 1u;
    Look();
  }

  const PackKvTokens& of_;
  const uint32_t head_;
  uint32_t ahead_;
  const uint32_t step_;
  const uint32_t count_;
  std::byte* const slots_;
  const uint32_t slot_bytes_;
  uint64_t* const barriers_;
  const bool is_leader_;
  const uint64_t policy_;
  const std::byte* body_ahead_;
  bool looks_ = false;
  bool has_ = false;
  Piece<kPieceRounds> looked_at_;
  Piece<kPieceRounds> loaded_;
  uint32_t slot_ = 0;  // of the next load
  uint32_t phases_ = 0;
};

__device__ __forceinline__ float Bf16(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float Low16(uint32_t word) {
  return static_cast<float>(static_cast<int16_t>(word & 0xFFFFu));
}
__device__ __forceinline__ float High16(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word) >> 16);
}

// Scale, zero and token of the two places of a lane in a round.
struct TwoTokens {
  uint32_t scale;
  uint32_t zero;
  uint32_t order;

  template <int kPieceRounds>
  __device__ __forceinline__ void Load(const Piece<kPieceRounds>& piece, bool is_value, int place) {
    const packkv::TokenTable& table = reinterpret_cast<const packkv::TokenTable*>(
        piece.body + sizeof(packkv::BodyHeader))[piece.block];
    scale = *reinterpret_cast<const uint32_t*>((is_value ? table.v_scale : table.k_scale) + place);
    zero = *reinterpret_cast<const uint32_t*>((is_value ? table.v_zero : table.k_zero) + place);
    order = *reinterpret_cast<const uint16_t*>(table.order + place);
  }
  __device__ float scale_of(int i) const { return Bf16(i == 0 ? scale & 0xFFFFu : scale >> 16); }
  __device__ float zero_of(int i) const { return i == 0 ? Low16(zero) : High16(zero); }
  __device__ uint32_t token(int i) const { return order >> (8 * i) & 0xFFu; }
};

template <int kPieceRounds>
__global__ void __launch_bounds__(32 * kWarps, kKeyBlocks)
    KeyKernel(const __grid_constant__ PackKvTokens of, const __half* q, __half* scores) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ float2 row_numbers[packkv::kProductRows];  // unit and sum of queries
  __shared__ uint64_t barriers[kWarps][kSlots];
  const int lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t slot_bytes = SlotBytes(of.k_bits, of.k_tile_bytes, kPieceRounds);
  float* const queries = reinterpret_cast<float*>(shared);
  std::byte* const mine = shared + kQueryBytes + warp * (kSlots * slot_bytes + kExchange);
  std::byte* const exchange = mine + kSlots * slot_bytes;
  if (lane < kSlots) ptx::BarrierInit(&barriers[warp][lane]);
  ptx::FenceBarrierInit();
  __syncwarp();
  const uint32_t head = blockIdx.x % of.kv_heads;
  const uint32_t blocks = gridDim.x / of.kv_heads;  // of a head
  const uint32_t step = blocks * kWarps;
  uint32_t index = warp * blocks + blockIdx.x / of.kv_heads;
  Pieces<kPieceRounds, false> pieces(of, head, index, step, mine, slot_bytes, barriers[warp], lane);
  cudaGridDependencySynchronize();
  if (warp < packkv::kProductRows) {
    uint2 bits = {0, 0};
    if (warp < of.rows)
      bits = reinterpret_cast<const uint2*>(q + (head * of.rows + warp) * kHeadDim)[lane];
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&bits.x));
    const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&bits.y));
    const float largest = fmaxf(
        MaxOfWarp(fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y)))), 1e-30f);
    const float sum = SumOfWarp(a.x + a.y + b.x + b.y);
    const float units = packkv::kQueryMax / largest;
    reinterpret_cast<float4*>(queries + warp * kHeadDim)[lane] = {a.x * units, a.y * units,
                                                                  b.x * units, b.y * units};
    if (lane == 0) row_numbers[warp] = {largest / packkv::kQueryMax, sum};
  }
  __syncthreads();
  if (!pieces.has()) return;
  const float factor = row_numbers[lane % 4].x;
  const float query_sum = row_numbers[lane % 4].y;
  packkv::KeyOperand<kHeadDim> operand;
  operand.Make(queries, kHeadDim, lane);
  const packkv::RoundFormat<kHeadDim, kKeyBits> format(of.k_bits, lane);
  const int g = lane / 4;
  const int t = lane % 4;
  __half* const to = scores + (head * of.rows + t) * static_cast<size_t>(of.tokens);
#pragma unroll 1
  while (pieces.has()) {
    const std::byte* data;
    const Piece<kPieceRounds> piece = pieces.Next(&data);
    const int first_place =
        static_cast<int>(index % (kRounds / kPieceRounds)) * kPieceRounds * packkv::kPackTokens;
    TwoTokens tokens[kPieceRounds];
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r)
      tokens[r].Load(piece, false, first_place + r * packkv::kPackTokens + 2 * g);
    packkv::Round<kHeadDim, kKeyBits> rounds[kPieceRounds];
    const std::byte* at[kPieceRounds];
    packkv::FindRounds(data, piece.units, at);
    packkv::BeginRounds(format, at, lane, rounds);
    __half* const block = to + static_cast<size_t>(index / (kRounds / kPieceRounds)) * kBlockTokens;
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r) {
      packkv::Nibbles nibbles;
      rounds[r].Read(format, nibbles);
      packkv::KeySums<kHeadDim> sums;
      sums.Make(nibbles, operand, exchange, lane);
      if (t < of.rows) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float dot = static_cast<float>(sums.of[0][i]) * (i == 0 ? factor : factor / 16);
          block[tokens[r].token(i)] =
              __float2half_rn(tokens[r].scale_of(i) * fmaf(tokens[r].zero_of(i), query_sum, dot));
        }
      }
      __syncwarp();
    }
    index += step;
  }
}

// Pieces of two rounds or four.
template <int kPieceRounds>
__global__ void __launch_bounds__(32 * kWarps, kValueBlocks)
    ValueKernel(const __grid_constant__ PackKvTokens of, const __half* w, float* output,
                uint64_t* words) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ uint64_t barriers[kWarps][kSlots];
  constexpr int kOutputs = packkv::kProductRows * kHeadDim;
  const int lane = threadIdx.x % 32;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t slot_bytes = SlotBytes(of.v_bits, of.v_tile_bytes, kPieceRounds);
  float* const all = reinterpret_cast<float*>(shared);  // [warp][row][channel]
  float* const outputs = all + warp * kOutputs;
  std::byte* const mine =
      shared + kWarps * kOutputBytes + warp * (kSlots * slot_bytes + 2 * kExchange);
  std::byte* const exchange = mine + kSlots * slot_bytes;
  if (lane < kSlots) ptx::BarrierInit(&barriers[warp][lane]);
  ptx::FenceBarrierInit();
  __syncwarp();
  const uint32_t blocks = gridDim.x / of.kv_heads;  // of a head
  const uint32_t head = blockIdx.x / blocks;
  const uint32_t step = blocks * kWarps;
  uint32_t index = warp * blocks + blockIdx.x % blocks;
  Pieces<kPieceRounds, true> pieces(of, head, index, step, mine, slot_bytes, barriers[warp], lane);
  const packkv::RoundFormat<kHeadDim, kValueBits> format(of.v_bits, lane);
  const int g = lane / 4;
  const int t = lane % 4;
  const uint32_t row = min(t, of.rows - 1);
  const __half* const from = w + (head * of.rows + row) * static_cast<size_t>(of.tokens);
  packkv::ValueSums<kHeadDim> sums;
  sums.Clear();
  packkv::ValueUnit unit;
  float zeros = 0;
  uint32_t pieces_since = 0;  // the sums were taken
  bool has_outputs = false;
  const auto take = [&] {
    sums.ForEach(lane, [&](int channel, float sum) {
      float& output = outputs[t * kHeadDim + channel];
      output = fmaf(sum, unit.weight(), has_outputs ? output : 0.0f);
    });
    sums.Clear();
    pieces_since = 0;
    has_outputs = true;
  };
  TwoTokens tokens[kPieceRounds];
  const auto load_tokens = [&] {
    if (!pieces.has()) return;
    const int first_place =
        static_cast<int>(index % (kRounds / kPieceRounds)) * kPieceRounds * packkv::kPackTokens;
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r)
      tokens[r].Load(pieces.next(), true, first_place + r * packkv::kPackTokens + 2 * g);
  };
  load_tokens();
  cudaGridDependencySynchronize();
#pragma unroll 1
  while (pieces.has()) {
    const __half* const block =
        from + static_cast<size_t>(index / (kRounds / kPieceRounds)) * kBlockTokens;
    __half chosen[kPieceRounds][2];
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) chosen[r][i] = block[tokens[r].token(i)];
    }
    const std::byte* data;
    const Piece<kPieceRounds> piece = pieces.Next(&data);
    packkv::Round<kHeadDim, kValueBits> rounds[kPieceRounds];
    const std::byte* at[kPieceRounds];
    packkv::FindRounds(data, piece.units, at);
    packkv::BeginRounds(format, at, lane, rounds);
    packkv::Nibbles nibbles[2];
    rounds[0].Read(format, nibbles[0]);
    rounds[1].Read(format, nibbles[1]);
    float weights[kPieceRounds][2];
    float largest = 0;
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights[r][i] = tokens[r].scale_of(i) * __half2float(chosen[r][i]);
        largest = fmaxf(largest, weights[r][i]);
      }
    }
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    if (__any_sync(kAllLanes, !unit.Holds(largest)) || pieces_since == packkv::kValueBlocksMax) {
      if (pieces_since > 0) take();
      unit.Grow(largest);
    }
    ++pieces_since;
    const float integer = unit.integer();
    float of_piece = 0;
#pragma unroll
    for (int r = 0; r < kPieceRounds; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        weights[r][i] = fmaf(weights[r][i], integer, packkv::kWeightBias);
        of_piece = fmaf(weights[r][i] - packkv::kWeightBias, tokens[r].zero_of(i), of_piece);
      }
    }
    zeros = fmaf(of_piece, unit.weight(), zeros);
    index += step;
    load_tokens();
#pragma unroll
    for (int r = 0; r < kPieceRounds; r += 2) {
      if (r > 0) {
        rounds[r].Read(format, nibbles[0]);
        rounds[r + 1].Read(format, nibbles[1]);
      }
      const uint32_t operand[2] = {packkv::ValueOperand(weights[r][0], weights[r][1]),
                                   packkv::ValueOperand(weights[r + 1][0], weights[r + 1][1])};
      sums.Add(nibbles, operand, exchange, lane);
      __syncwarp();
    }
  }
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2)
    zeros += __shfl_xor_sync(kAllLanes, zeros, distance);
  take();
  __syncwarp();
  for (int channel = g; channel < kHeadDim; channel += 8) outputs[t * kHeadDim + channel] += zeros;
  // Of the warps, then of the head's blocks.
  __syncthreads();
  const uint32_t count = of.rows * kHeadDim;
  float* const to = output + head * count;
  for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kWarps; ++k) sum += all[k * kOutputs + i];
    all[i] = sum;
  }
  __syncthreads();
  if (blocks == 1) {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) to[i] = all[i];
    return;
  }
  // Words say themselves that they have arrived (gpu/attend_parts.cuh): pairs of outputs of every
  // block go to the block that adds them up. All blocks are resident.
  const uint32_t pairs = count / 2;
  const uint32_t own = (pairs + blocks - 1) / blocks;
  const uint32_t of_head = blockIdx.x % blocks;
  uint64_t* const mailbox = words + static_cast<size_t>(head * blocks) * kOutputs;
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
  reinterpret_cast<float2*>(to)[pair] = sum;
}

// Of one head, which has so many pieces.
int BlocksFor(const PackKvTokens& of, int all, uint32_t pieces) {
  const int needed = static_cast<int>((pieces + kWarps - 1) / kWarps);
  return std::min(all / static_cast<int>(of.kv_heads), needed);
}

// Behind another launch, whose end it waits for on the device.
template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int blocks, uint32_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(32 * kWarps);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <int kPieceRounds>
cudaError_t LaunchKeys(const PackKvTokens& of, const __half* q, __half* scores, int multiprocessors,
                       cudaStream_t stream) {
  const uint32_t bytes =
      kQueryBytes +
      kWarps * (kSlots * SlotBytes(of.k_bits, of.k_tile_bytes, kPieceRounds) + kExchange);
  const uint32_t pieces = of.tokens / kBlockTokens * (kRounds / kPieceRounds);
  const int blocks = BlocksFor(of, multiprocessors * kKeyBlocks, pieces);
  return Launch(KeyKernel<kPieceRounds>, blocks * static_cast<int>(of.kv_heads), bytes, stream, of,
                q, scores);
}

template <int kPieceRounds>
cudaError_t LaunchValues(const PackKvTokens& of, const __half* w, float* output,
                         std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  const uint32_t bytes =
      kWarps *
      (kOutputBytes + kSlots * SlotBytes(of.v_bits, of.v_tile_bytes, kPieceRounds) + 2 * kExchange);
  const uint32_t pieces = of.tokens / kBlockTokens * (kRounds / kPieceRounds);
  const int blocks = BlocksFor(of, multiprocessors * kValueBlocks, pieces);
  return Launch(ValueKernel<kPieceRounds>, blocks * static_cast<int>(of.kv_heads), bytes, stream,
                of, w, output, reinterpret_cast<uint64_t*>(workspace));
}

// Whole tiles once most warps have one.
bool HasTileForMostWarps(const PackKvTokens& of, int blocks) {
  return of.tokens / kBlockTokens * of.kv_heads * 2 > static_cast<uint32_t>(blocks * kWarps);
}

}  // namespace

cudaError_t LaunchKeyProducts(const PackKvTokens& of, const __half* q, __half* scores,
                              int multiprocessors, cudaStream_t stream) {
  return HasTileForMostWarps(of, multiprocessors * kKeyBlocks)
             ? LaunchKeys<kRounds>(of, q, scores, multiprocessors, stream)
             : LaunchKeys<1>(of, q, scores, multiprocessors, stream);
}

size_t ValueProductsWorkspaceBytes(int multiprocessors) {
  return sizeof(uint64_t) * packkv::kProductRows * kHeadDim *
         static_cast<size_t>(multiprocessors * kValueBlocks);
}

cudaError_t LaunchValueProducts(const PackKvTokens& of, const __half* w, float* output,
                                std::byte* workspace, int multiprocessors, cudaStream_t stream) {
  return HasTileForMostWarps(of, multiprocessors * kValueBlocks)
             ? LaunchValues<kRounds>(of, w, output, workspace, multiprocessors, stream)
             : LaunchValues<2>(of, w, output, workspace, multiprocessors, stream);
}

}  // namespace kvdepot
