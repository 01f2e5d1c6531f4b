// A warp decodes rounds of a `packkv` tile of one head, K or V.
#ifndef KVDEPOT_GPU_PACKKV_DECODE_RUN_CUH_
#define KVDEPOT_GPU_PACKKV_DECODE_RUN_CUH_

#include "gpu/decode_runs_cuda.h"
#include "gpu/packkv/format.h"
#include "gpu/packkv/round.cuh"
#include "gpu/segment_header.h"
#include "gpu/store_values.cuh"

namespace kvdepot::packkv {

template <int kHeadDim, int kWarps>
struct DecodeShared {
  static constexpr uint32_t kPassBytes =
      kRoundsAtOnce<kHeadDim> * RoundBytesMax(kHeadDim, kNibbleCodeBits) + 16;
  alignas(16) std::byte rounds[kWarps][kPassBytes];
};

// Channels 4 lane .. 4 lane + 3 of a row of kDType elements.
template <DType kDType>
__device__ __forceinline__ void StoreFour(std::byte* row, int four, const float (&values)[4]) {
  if constexpr (kDType == DType::kFp32) {
    reinterpret_cast<float4*>(row)[four] = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    reinterpret_cast<uint2*>(row)[four] =
        make_uint2(PackPair<kDType>(values[0], values[1]), PackPair<kDType>(values[2], values[3]));
  }
}

// Tokens of the run in its segment's blocks [first_block, block_end). All kWarps warps of the
// thread block.
template <int kHeadDim, int kWarps, DType kTo>
__device__ void DecodeRunBlocks(const DecodeBatch& batch, const DecodeRun& job, int tensor,
                                int first_block, int block_end,
                                DecodeShared<kHeadDim, kWarps>& shared) {
  constexpr int kAtOnce = kRoundsAtOnce<kHeadDim>;
  constexpr int kPasses = kRounds / kAtOnce;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_key = tensor % 2 == 0;
  const std::byte* const body = job.run.data + SegmentHeaderBytes(batch.kv_heads);
  const BodyHeader& header = *reinterpret_cast<const BodyHeader*>(body);
  const RoundFormat<kHeadDim, kNibbleCodeBits> format(is_key ? header.k_bits : header.v_bits, lane);
  const int blocks = job.run.capacity / kBlockTokens;
  std::byte* const output = is_key ? batch.k : batch.v;
  std::byte* const memory = shared.rounds[warp];
  for (int index = first_block * kPasses + warp; index < block_end * kPasses; index += kWarps) {
    const int block = index / kPasses;
    const int first_round = index % kPasses * kAtOnce;
    const std::byte* const entry =
        body + DirectoryAt(blocks) +
        static_cast<size_t>(block * batch.kv_heads + tensor / 2) * EntryBytes(kPackTokens);
    const uint16_t* const units =
        reinterpret_cast<const uint16_t*>(entry + EntryUnitsAt(is_key, kPackTokens));
    uint32_t at = reinterpret_cast<const uint32_t*>(entry)[is_key ? 0 : 1];
    for (int r = 0; r < first_round; ++r) at += units[r];
    uint16_t own[kAtOnce];
    uint32_t all = 0;
    for (int i = 0; i < kAtOnce; ++i) {
      own[i] = units[first_round + i];
      all += own[i];
    }
    __syncwarp();
    for (uint32_t i = lane; i < all; i += 32) {
      reinterpret_cast<uint4*>(memory)[i] =
          reinterpret_cast<const uint4*>(body + kUnitBytes * at)[i];
    }
    __syncwarp();
    Round<kHeadDim, kNibbleCodeBits> round[1];
    const std::byte* rounds_at[kAtOnce];
    FindRounds(memory, own, rounds_at);
    BeginRounds(format, rounds_at, lane, round);
    Nibbles nibbles;
    round[0].Read(format, nibbles);

    const TokenTable& table = *reinterpret_cast<const TokenTable*>(body + TokenTableAt(block));
    const int of_round = lane % kRoundLanes<kHeadDim>;
    const int first_place = kPackTokens * (first_round + lane / kRoundLanes<kHeadDim>);
    for (int i = 0; i < kPackTokens; ++i) {
      const int place = first_place + i;
      const int token = block * kBlockTokens + table.order[place] - job.run.first;
      if (token < 0 || token >= job.run.count) continue;
      const uint32_t scale_bits = is_key ? table.k_scale[place] : table.v_scale[place];
      const int zero = is_key ? table.k_zero[place] : table.v_zero[place];
      const float scale = __uint_as_float(scale_bits << 16);
      float values[kLaneChannels];
      for (int c = 0; c < kLaneChannels; ++c) {
        const int code = static_cast<int>(nibbles[c][i / 8] >> (4 * (i % 8)) & 15u);
        values[c] = __fmul_rn(static_cast<float>(code + zero), scale);
      }
      const size_t row =
          (job.target + static_cast<size_t>(token)) * static_cast<size_t>(batch.kv_heads) +
          static_cast<size_t>(tensor / 2);
      StoreFour<kTo>(output + row * kHeadDim * DTypeBytes(kTo), of_round, values);
    }
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_DECODE_RUN_CUH_
