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
  alignas(16) std::byte tiles[kWarps][TileBytesMax(kHeadDim)];
};

// Eight channels that follow each other of a row of kDType elements.
template <DType kDType>
__device__ __forceinline__ void StoreEight(std::byte* to, const float (&v)[8]) {
  if constexpr (kDType == DType::kFp32) {
    reinterpret_cast<float4*>(to)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(PackPair<kDType>(v[0], v[1]), PackPair<kDType>(v[2], v[3]),
                   PackPair<kDType>(v[4], v[5]), PackPair<kDType>(v[6], v[7]));
  }
}

// Tokens of the run in its segment's blocks [first_block, block_end). All kWarps warps of the
// thread block.
template <int kHeadDim, int kWarps, DType kTo>
__device__ void DecodeRunBlocks(const DecodeBatch& batch, const DecodeRun& job, int tensor,
                                int first_block, int block_end,
                                DecodeShared<kHeadDim, kWarps>& shared) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_key = tensor % 2 == 0;
  const std::byte* const body = job.run.data + SegmentHeaderBytes(batch.kv_heads);
  const BodyHeader& header = *reinterpret_cast<const BodyHeader*>(body);
  const RoundFormat<kHeadDim, kValueLanes> format(is_key ? header.k_bits : header.v_bits, lane);
  const int blocks = job.run.capacity / kBlockTokens;
  // Of the lane: round t of a tile, the channels of share g.
  const int first_place = lane % 4 * kPackTokens;
  const int first_channel = lane / 4 * (kHeadDim / kValueLanes);
  std::byte* const output = (is_key ? batch.k : batch.v) + first_channel * DTypeBytes(kTo);
  std::byte* const tile = shared.tiles[warp];
  for (int block = first_block + warp; block < block_end; block += kWarps) {
    const std::byte* const entry =
        body + DirectoryAt(blocks) +
        static_cast<size_t>(block * batch.kv_heads + tensor / 2) * EntryBytes(kPackTokens);
    const uint2 units = *reinterpret_cast<const uint2*>(entry + EntryUnitsAt(is_key, kPackTokens));
    const uint32_t at = reinterpret_cast<const uint32_t*>(entry)[is_key ? 0 : 1];
    __syncwarp();
    for (uint32_t i = lane; i < TileBytes(units) / kUnitBytes; i += 32)
      reinterpret_cast<uint4*>(tile)[i] = reinterpret_cast<const uint4*>(body + kUnitBytes * at)[i];
    __syncwarp();
    LaneChannels<kHeadDim, kValueLanes, kNibbleCodeBits> channels;
    channels.Begin(format, tile + RoundBegin(units, lane % 4), lane);

    const TokenTable& table = *reinterpret_cast<const TokenTable*>(body + TokenTableAt(block));
    for (int group = 0; group < kHeadDim / kValueLanes / kNibbleChannels; ++group) {
      const uint32_t minima = channels.NextMinima();
      PackCodes codes[kNibbleChannels];
#pragma unroll
      for (int c = 0; c < kNibbleChannels; ++c) codes[c] = channels.Next(c);
      channels.Skip(kNibbleChannels);
#pragma unroll 4
      for (int i = 0; i < kPackTokens; ++i) {
        const int place = first_place + i;
        const int token = block * kBlockTokens + table.order[place] - job.run.first;
        if (token < 0 || token >= job.run.count) continue;
        const uint32_t scale_bits = is_key ? table.k_scale[place] : table.v_scale[place];
        const int zero = is_key ? table.k_zero[place] : table.v_zero[place];
        const float scale = __uint_as_float(scale_bits << 16);
        float values[kNibbleChannels];
#pragma unroll
        for (int c = 0; c < kNibbleChannels; ++c) {
          const uint32_t word = i % 2 == 0 ? codes[c].even : codes[c].odd;
          const int code =
              static_cast<int>((word >> (i / 2 * 4) & 15u) + (minima >> (4 * c) & 15u));
          values[c] = __fmul_rn(static_cast<float>(code + zero), scale);
        }
        const size_t row =
            (job.target + static_cast<size_t>(token)) * static_cast<size_t>(batch.kv_heads) +
            static_cast<size_t>(tensor / 2);
        StoreEight<kTo>(output + (row * kHeadDim + group * kNibbleChannels) * DTypeBytes(kTo),
                        values);
      }
    }
  }
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_DECODE_RUN_CUH_
