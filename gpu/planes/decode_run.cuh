// A thread block decodes K or V of one head of a `planes` segment, a few blocks of tokens at a
// time: 8 warps, each a group of 32 channels, bring the codes into channel order in shared memory;
// then every thread makes the values of 8 channels of 8 tokens, which it stores 16 bytes at a time.
#ifndef KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_
#define KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_

#include <type_traits>

#include "gpu/decode_runs_cuda.h"
#include "gpu/load_values.cuh"
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
    ChannelDecoder channels[kHeadDim];
  };
};

// K or V of one head of a run.
struct DecodeSource {
  uint32_t widths;
  const uint8_t* order;
  const uint16_t* table;
  const std::byte* records;
  uint32_t record_bytes;
  uint32_t planes_offset;  // of this tensor's first group inside a record
};

template <int kHeadDim, bool kIsKey>
__device__ DecodeSource SourceOf(const DecodeBatch& batch, const DecodeRun& job, int head_index) {
  const DeviceHead& head = (job.heads != nullptr ? job.heads : batch.heads)[head_index];
  const std::byte* part =
      job.run.data + PlanesPartOffset(SegmentHeaderBytes(batch.kv_heads), kHeadDim, head_index,
                                      head.record_bytes_before, job.run.capacity / kBlockTokens);
  constexpr int kGroups = kHeadDim / kGroupChannels;
  DecodeSource source;
  source.widths = kIsKey ? head.k_widths : head.v_widths;
  source.order = kIsKey ? head.k_order : head.v_order;
  source.table = reinterpret_cast<const uint16_t*>(part + (kIsKey ? 0 : TableBytes(kHeadDim)));
  source.records = part + 2 * TableBytes(kHeadDim);
  source.record_bytes = head.record_bytes;
  source.planes_offset = kTokenScaleBytes;
  if (!kIsKey)
    source.planes_offset += static_cast<uint32_t>(GroupBytes(WidthsBefore(head.k_widths, kGroups)));
  return source;
}

// Channels' constants; code words of channels without bits, which stay 0.
template <int kHeadDim, bool kIsKey>
__device__ void Prepare(typename DecodeStep<kHeadDim>::Shared& shared, const DecodeSource& source) {
  using S = DecodeStep<kHeadDim>;
  const int place = static_cast<int>(threadIdx.x);
  if (place >= kHeadDim) return;
  const int channel = source.order[place];
  const int width = GroupWidth(source.widths, place / kGroupChannels);
  const int index = kIsKey ? KTableIndex(kHeadDim, place) : VTableIndex(kHeadDim, place);
  shared.channels[channel] =
      ChannelDecoder::Of(width, HalfToFloat(source.table[index]),
                         HalfToFloat(source.table[index + CentreDistance(kHeadDim)]));
  if (width > 0) return;
  for (int row = 0; row < kCodeRows; ++row) {
    const int word = row * S::kRowWords + CodePosition(kHeadDim, channel);
    for (int block = 0; block < S::kBlocks; ++block)
      shared.codes[0][block][word] = shared.codes[1][block][word] = 0;
  }
}

// The low (half 0) or high (1) nibbles of a word as the floats 1 + nibble / 16.
class OneAndCodes {
 public:
  __device__ OneAndCodes() {}
  // Each byte becomes what a float has below its first byte, 0x3F: the exponent's last bit and the
  // code.
  __device__ __forceinline__ OneAndCodes(uint32_t word, int half)
      : bytes_(((half == 0 ? word << 3 : word >> 1) & 0x78787878u) | 0x80808080u) {}
  __device__ __forceinline__ float of_byte(int byte) const {
    return FloatFromBits(
        __byte_perm(bytes_, 0x00003F00u, 0x5044u | static_cast<uint32_t>(byte) << 8));
  }

 private:
  uint32_t bytes_;
};

// What a thread brings from a step's records: its lane's words of its warp's group and block, and
// one token's scale.
struct StepRecords {
  GroupWords words;
  uint8_t token_code;
};

// Tokens of `job` in blocks [first_block, block_end) of its segment, K or V of one head. Called by
// all threads of a thread block.
template <int kHeadDim, DType kTo, bool kIsKey>
__device__ void DecodeRunBlocks(const DecodeBatch& batch, const DecodeRun& job, int head,
                                int first_block, int block_end,
                                typename DecodeStep<kHeadDim>::Shared& shared) {
  using S = DecodeStep<kHeadDim>;
  const DecodeSource source = SourceOf<kHeadDim, kIsKey>(batch, job, head);
  const int run_first = job.run.first;
  const int run_count = job.run.count;
  const uint64_t run_target = job.target;
  const int thread = static_cast<int>(threadIdx.x);

  // Unpacking: a warp's group and block; a thread's token.
  const int lane = thread % 32;
  const int group = thread / 32 % S::kGroups;
  const int unpack_block = thread / 32 / S::kGroups;
  const int width = GroupWidth(source.widths, group);
  const std::byte* planes =
      source.records + source.planes_offset + GroupBytes(WidthsBefore(source.widths, group));
  uint32_t positions[2];
  LanePositions(kIsKey, kHeadDim, source.order + group * kGroupChannels, lane, positions);
  const int scale_block = thread / kBlockTokens;
  const int scale_slot = thread % kBlockTokens;
  const std::byte* scales =
      source.records + (kIsKey ? KTokenScaleIndex(scale_slot) : VTokenScaleIndex(scale_slot));
  const auto load = [&](int step_block) {
    StepRecords records{};
    if (width > 0 && step_block + unpack_block < block_end) {
      const std::byte* from =
          planes + static_cast<size_t>(step_block + unpack_block) * source.record_bytes;
      records.words = kIsKey ? LoadKeyGroup(width, from, lane) : LoadValueGroup(width, from, lane);
    }
    if (scale_block < S::kBlocks && step_block + scale_block < block_end) {
      records.token_code = static_cast<uint8_t>(
          scales[static_cast<size_t>(step_block + scale_block) * source.record_bytes]);
    }
    return records;
  };

  // Decoding: a thread's block, row of code words and 8 channels.
  const int octet = thread % S::kOctets;
  const int row = thread / S::kOctets % kCodeRows;
  const int decode_block = thread / (S::kOctets * kCodeRows);
  const int row_token = TokenOfRow(kIsKey, row);
  const uint32_t token_bytes =
      static_cast<uint32_t>(batch.kv_heads) * static_cast<uint32_t>(kHeadDim * DTypeBytes(kTo));
  std::byte* const output =
      (kIsKey ? batch.k : batch.v) + static_cast<size_t>(head) * kHeadDim * DTypeBytes(kTo);

  StepRecords records = load(first_block);
  Prepare<kHeadDim, kIsKey>(shared, source);
  __syncthreads();
  ChannelDecoder channels[8];
#pragma unroll
  for (int c = 0; c < 8; ++c) channels[c] = shared.channels[8 * octet + c];

  int buffer = 0;
  for (int step_block = first_block; step_block < block_end;
       step_block += S::kBlocks, buffer ^= 1) {
    if (width > 0) {
      uint32_t* codes = shared.codes[buffer][unpack_block];
      if constexpr (kIsKey) {
        UnpackKeyGroup(width, records.words, positions, lane, codes, S::kRowWords);
      } else {
        UnpackValueGroup(width, records.words, positions, lane, codes, S::kRowWords);
      }
    }
    if (scale_block < S::kBlocks)
      shared.token_scale[buffer][scale_block][scale_slot] = TokenScaleValue(records.token_code);
    // Two buffers: who is still decoding the last step's is not disturbed, and nobody is two steps
    // behind.
    __syncthreads();

    // Tokens from the run's first on: that of the block's first slot, which may lie before the run,
    // and that of this thread's row.
    const int block_token = (step_block + decode_block) * kBlockTokens - run_first;
    const int token = block_token + row_token;
    const uint32_t* code_row = shared.codes[buffer][decode_block] + row * S::kRowWords;
    const uint4 low = reinterpret_cast<const uint4*>(code_row)[octet];
    const uint4 high = reinterpret_cast<const uint4*>(code_row + kHeadDim / 2)[octet];
    const uint32_t code[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const float* token_scale = shared.token_scale[buffer][decode_block] + row_token;
    std::byte* to =
        output + (static_cast<int64_t>(run_target) + token) * static_cast<int64_t>(token_bytes);
    // Blocks past the end lie past the run, too.
    const bool whole = block_token >= 0 && block_token + kBlockTokens <= run_count;
    const auto store_tokens = [&](int half, auto checked) {
      OneAndCodes codes[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) codes[c] = OneAndCodes(code[c], half);
#pragma unroll
      for (int byte = 0; byte < 4; ++byte) {
        const int offset = TokenOfNibble(kIsKey, byte, half);
        if (checked && static_cast<uint32_t>(token + offset) >= static_cast<uint32_t>(run_count))
          continue;
        float values[8];
#pragma unroll
        for (int c = 0; c < 8; ++c)
          values[c] = channels[c].Value(codes[c].of_byte(byte), token_scale[offset]);
        StoreOctet<kTo>(to + static_cast<uint64_t>(token_bytes) * static_cast<uint32_t>(offset),
                        octet, values);
      }
    };
    const auto store_half = [&](int half) {
      if (whole) {
        store_tokens(half, std::false_type{});
      } else {
        store_tokens(half, std::true_type{});
      }
    };
    store_half(0);
    // The next step's loads fly during the rest of this one.
    records = load(step_block + S::kBlocks);
    store_half(1);
  }
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_DECODE_RUN_CUH_
