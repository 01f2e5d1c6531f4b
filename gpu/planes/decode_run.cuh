// A thread block decodes K or V of one head of a `planes` segment, a few blocks of tokens at a
// time: 8 warps, each a group of 32 channels, bring the codes into channel order in shared memory;
// then every thread makes the values of 8 channels of 8 tokens, which it stores 16 bytes at a time.
#ifndef KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_
#define KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_

#include "gpu/decode_runs_cuda.h"
#include "gpu/planes/codec.h"
#include "gpu/planes/unpack.cuh"
#include "gpu/segment_header.h"
#include "gpu/store_values.cuh"

namespace kvdepot::planes {

inline constexpr int kDecodeWarps = 8;
inline constexpr int kDecodeThreads = 32 * kDecodeWarps;

template <int kHeadDim>
struct DecodeStep {
  static constexpr int kGroups = kHeadDim / kGroupChannels;
  static constexpr int kBlocks = kDecodeWarps / kGroups;  // blocks of tokens at a time
  static constexpr int kOctets = kHeadDim / 8;
  // Rows begin 4 banks apart, so that the 8 rows of a channel lie in different ones.
  static constexpr int kRowWords = kHeadDim + 4;

  struct Shared {
    alignas(16) uint32_t codes[2][kBlocks][kCodeRows * kRowWords];
    float token_scale[2][kBlocks][kBlockTokens];
    float scale[kHeadDim];
    float middle[kHeadDim];
    float centre[kHeadDim];
  };
};

// K or V of one head of a run.
struct DecodeSource {
  bool is_key;
  uint32_t widths;
  const uint8_t* order;
  const uint16_t* table;
  const std::byte* records;
  uint32_t record_bytes;
  uint32_t planes_offset;  // of this tensor's first group inside a record
};

template <int kHeadDim>
__device__ DecodeSource SourceOf(const DecodeBatch& batch, const TokenRun& run, int tensor) {
  const int head_index = tensor / 2;
  const DeviceHead& head = batch.heads[head_index];
  const std::byte* part =
      run.data + PlanesPartOffset(SegmentHeaderBytes(batch.kv_heads), kHeadDim, head_index,
                                  head.record_bytes_before, run.capacity / kBlockTokens);
  DecodeSource source;
  source.is_key = tensor % 2 == 0;
  source.widths = source.is_key ? head.k_widths : head.v_widths;
  source.order = source.is_key ? head.k_order : head.v_order;
  source.table =
      reinterpret_cast<const uint16_t*>(part + (source.is_key ? 0 : TableBytes(kHeadDim)));
  source.records = part + 2 * TableBytes(kHeadDim);
  source.record_bytes = head.record_bytes;
  constexpr int kGroups = kHeadDim / kGroupChannels;
  source.planes_offset =
      kTokenScaleBytes +
      (source.is_key ? 0u
                     : static_cast<uint32_t>(GroupBytes(WidthsBefore(head.k_widths, kGroups))));
  return source;
}

// Tables by channel; code words of channels without bits, which stay 0.
template <int kHeadDim>
__device__ void Prepare(typename DecodeStep<kHeadDim>::Shared& shared, const DecodeSource& source) {
  using S = DecodeStep<kHeadDim>;
  const int place = static_cast<int>(threadIdx.x);
  if (place < kHeadDim) {
    const int channel = source.order[place];
    const int width = GroupWidth(source.widths, place / kGroupChannels);
    const int index = source.is_key ? KTableIndex(kHeadDim, place) : VTableIndex(kHeadDim, place);
    shared.scale[channel] = width == 0 ? 0.0f : 16.0f * Fp16ToFloat(source.table[index]);
    shared.middle[channel] = CodeMiddle(width == 0 ? 4 : width);
    shared.centre[channel] = Fp16ToFloat(source.table[index + CentreDistance(kHeadDim)]);
    if (width == 0) {
      for (int buffer = 0; buffer < 2; ++buffer) {
        for (int block = 0; block < S::kBlocks; ++block) {
          for (int row = 0; row < kCodeRows; ++row)
            shared.codes[buffer][block][row * S::kRowWords + channel] = 0;
        }
      }
    }
  }
}

// Tokens of `job` in blocks [first_block, block_end) of its segment, K or V of one head. Called by
// all threads of a thread block.
template <int kHeadDim, DType kTo>
__device__ void DecodeRunBlocks(const DecodeBatch& batch, const DecodeRun& job, int tensor,
                                int first_block, int block_end,
                                typename DecodeStep<kHeadDim>::Shared& shared) {
  using S = DecodeStep<kHeadDim>;
  const TokenRun& run = job.run;
  const int end = run.first + run.count;
  const DecodeSource source = SourceOf<kHeadDim>(batch, run, tensor);
  Prepare<kHeadDim>(shared, source);

  // Unpacking: a warp's group and block, a lane's channels.
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int group = static_cast<int>(threadIdx.x / 32) % S::kGroups;
  const int unpack_block = static_cast<int>(threadIdx.x / 32) / S::kGroups;
  const int width = GroupWidth(source.widths, group);
  const std::byte* planes =
      source.records + source.planes_offset + GroupBytes(WidthsBefore(source.widths, group));
  uint32_t channels[2];
  LaneChannels(source.is_key, source.order + group * kGroupChannels, lane, channels);
  const auto load = [&](int block) {
    GroupWords words{};
    if (width > 0 && block < block_end) {
      const std::byte* from = planes + static_cast<size_t>(block) * source.record_bytes;
      words = source.is_key ? LoadKeyGroup(width, from, lane) : LoadValueGroup(width, from, lane);
    }
    return words;
  };

  // Decoding: a thread's block, row of code words and 8 channels.
  const int octet = static_cast<int>(threadIdx.x) % S::kOctets;
  const int row = static_cast<int>(threadIdx.x) / S::kOctets % kCodeRows;
  const int decode_block = static_cast<int>(threadIdx.x) / (S::kOctets * kCodeRows);
  const size_t token_bytes = static_cast<size_t>(batch.kv_heads) * kHeadDim * DTypeBytes(kTo);
  std::byte* const output = (source.is_key ? batch.k : batch.v) +
                            static_cast<size_t>(tensor / 2) * kHeadDim * DTypeBytes(kTo);

  GroupWords words = load(first_block + unpack_block);
  __syncthreads();  // Prepare.
  float scale[8], middle[8], centre[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    scale[c] = shared.scale[8 * octet + c];
    middle[c] = shared.middle[8 * octet + c];
    centre[c] = shared.centre[8 * octet + c];
  }
  int buffer = 0;
  for (int step_block = first_block; step_block < block_end;
       step_block += S::kBlocks, buffer ^= 1) {
    const int block = step_block + unpack_block;
    if (width > 0 && block < block_end) {
      uint32_t* codes = shared.codes[buffer][unpack_block];
      if (source.is_key) {
        UnpackKeyGroup(width, words, channels, lane, codes, S::kRowWords);
      } else {
        UnpackValueGroup(width, words, channels, lane, codes, S::kRowWords);
      }
    }
    if (static_cast<int>(threadIdx.x) < S::kBlocks * kBlockTokens) {
      const int scale_block = static_cast<int>(threadIdx.x) / kBlockTokens;
      const int slot = static_cast<int>(threadIdx.x) % kBlockTokens;
      if (step_block + scale_block < block_end) {
        const std::byte* record =
            source.records + static_cast<size_t>(step_block + scale_block) * source.record_bytes;
        shared.token_scale[buffer][scale_block][slot] = TokenScaleValue(static_cast<uint8_t>(
            record[source.is_key ? KTokenScaleIndex(slot) : VTokenScaleIndex(slot)]));
      }
    }
    // Two buffers: who is still decoding the last step's is not disturbed, and nobody is two steps
    // behind.
    __syncthreads();
    words = load(block + S::kBlocks);

    const int first_token = (step_block + decode_block) * kBlockTokens;
    if (step_block + decode_block >= block_end) continue;
    const uint32_t* code_row = shared.codes[buffer][decode_block] + row * S::kRowWords + 8 * octet;
    const uint4 low = reinterpret_cast<const uint4*>(code_row)[0];
    const uint4 high = reinterpret_cast<const uint4*>(code_row)[1];
    const uint32_t code[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int byte = 0; byte < 4; ++byte) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = TokenOfCode(source.is_key, row, byte, half);
        const int token = first_token + slot;
        if (token < run.first || token >= end) continue;
        const float token_scale = shared.token_scale[buffer][decode_block][slot];
        float values[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          constexpr int kMantissaTop = 19;
          const int at = 8 * byte + 4 * half;
          const uint32_t moved =
              at <= kMantissaTop ? code[c] << (kMantissaTop - at) : code[c] >> (at - kMantissaTop);
          const float one_and_code = FloatFromBits(0x3F800000u | (moved & 0x00780000u));
          values[c] = DecodedValue(one_and_code, middle[c], scale[c], token_scale, centre[c]);
        }
        const size_t target = job.target + static_cast<size_t>(token - run.first);
        StoreOctet<kTo>(output + target * token_bytes, octet, values);
      }
    }
  }
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_
