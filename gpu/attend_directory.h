// What an attend launch reads from device memory: where the tokens of every session of the batch
// lie, and its queries. Plain data, the same on host and device.
//
// Positions are counted from the session's first token and stay below 2^31.
#ifndef KVDEPOT_GPU_ATTEND_DIRECTORY_H_
#define KVDEPOT_GPU_ATTEND_DIRECTORY_H_

#include <cstddef>
#include <cstdint>

#include "gpu/device_head.h"
#include "gpu/host_device.h"
#include "gpu/shape.h"

namespace kvdepot {

// Kernels compute logits to base 2.
inline constexpr float kLog2E = 1.44269504088896f;

// Exact tokens are read in chunks of at most this many.
inline constexpr int kExactChunkTokens = 16;

// Warps read `planes` and `packkv` segments in steps of so many blocks.
inline constexpr int kStepBlocks = 2;

// Consecutive tokens of a sealed segment that is not raw, read by whole blocks: all of a launch are
// of one codec, `planes` or `packkv`.
struct alignas(16) CodedRun {
  const std::byte* segment;
  uint32_t position;    // of the segment's token 0
  uint32_t unit_begin;  // steps of all earlier runs of the list
  uint16_t first;       // visible tokens are first .. first + count - 1
  uint16_t count;
  uint16_t first_block;  // first / 64
  uint16_t blocks;       // of the whole segment
};

// Steps that read tokens first .. first + count - 1 of a segment; the first begins with the block
// of `first`, the last may be short of blocks.
KVDEPOT_HOST_DEVICE constexpr uint32_t CodedSteps(uint32_t first, uint32_t count) {
  const uint32_t blocks = (first + count - 1) / kBlockTokens - first / kBlockTokens + 1;
  return (blocks + kStepBlocks - 1) / kStepBlocks;
}

// Consecutive tokens of an exact extent, or of one block of a raw segment.
struct alignas(16) ExactRun {
  const std::byte* rows;       // K of KV head 0, V follows `capacity` rows later
  uint64_t head_stride_bytes;  // to the same rows of the next KV head
  uint32_t position;           // of the token in slot `first`
  uint32_t unit_begin;         // chunks of all earlier runs of the list
  uint16_t first;
  uint16_t count;
  uint16_t capacity;
  uint16_t zero;
};

// One session: its tokens of the layer and its queries. All pointers are device memory.
struct alignas(128) AttendCell {
  const CodedRun* coded;
  const ExactRun* exact;
  const DeviceHead* heads;  // [kv_heads]; null without runs of `planes`
  const std::byte* q;       // [query token][query_head][channel] in the session's dtype
  uint32_t coded_runs;
  uint32_t exact_runs;
  uint32_t coded_units;  // steps of all coded runs
  uint32_t exact_units;  // chunks of all exact runs
  uint32_t query_position;
  uint32_t query_tokens;
  // On q.k; to base 2 unless there is a soft-cap.
  float scale;
  uint32_t zero;
  // Wanted last, and not in the 64 bytes that a launch waits for first.
  float* output;       // [query token][query_head][channel]
  float* log_sum_exp;  // [query token][query_head]
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_DIRECTORY_H_
