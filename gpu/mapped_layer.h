// What the kernels of a mapped client know of its sessions. Device memory of the client; plain
// data, the same on host and device.
//
//   exact list of a layer:  |sinks| ... |tail, full| tail, 40 of 64 | room | room |
//                                                    ^ open[0]        ^ open[1] ...
// Tokens written since the directory go behind the directory's, into the open runs in order. All of
// those but the first have kBlockTokens slots.
#ifndef KVDEPOT_GPU_MAPPED_LAYER_H_
#define KVDEPOT_GPU_MAPPED_LAYER_H_

#include <cstddef>
#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/device_head.h"
#include "gpu/host_device.h"
#include "gpu/shape.h"

namespace kvdepot {

// Why nothing is written to a session any more.
enum class Refusal : uint32_t { kNone, kNoRoom, kNotFinite };

// One a session, for all of its layers: the first refusal stays until it is cleared.
struct alignas(32) MappedFlag {
  Refusal refusal = Refusal::kNone;
  uint32_t layer = 0;
  uint32_t tokens = 0;  // that were to be written
  uint32_t room = 0;    // slots that were free
  uint64_t value = 0;   // kNotFinite: index in k, or in v
  uint32_t in_v = 0;
  uint32_t zero = 0;
};

// One layer of one session by one directory, and what was written since.
struct alignas(128) MappedLayer {
  const CodedRun* coded = nullptr;
  ExactRun* exact = nullptr;
  const DeviceHead* heads = nullptr;           // [kv_heads]; null without `planes` runs
  const uint32_t* block_cost_bytes = nullptr;  // [kv_heads], as AttendLaunch
  uint32_t coded_runs = 0;
  uint32_t coded_units = 0;
  uint32_t first_open = 0;   // in `exact`; all runs before are full
  uint32_t open_tokens = 0;  // that the directory has in it
  uint32_t open_slots = 0;   // that are free in it by the directory
  uint32_t room = 0;         // slots that are free in all open runs by the directory
  uint32_t position = 0;     // token count of the directory
  uint32_t written = 0;      // tokens behind that

  // Of the token that is `behind` tokens behind the directory's: its open run, and how many slots
  // of that come before.
  KVDEPOT_HOST_DEVICE uint32_t OpenRun(uint32_t behind) const {
    return behind < open_slots ? 0 : 1 + (behind - open_slots) / kBlockTokens;
  }
  KVDEPOT_HOST_DEVICE uint32_t SlotsBefore(uint32_t behind) const {
    return behind < open_slots ? open_tokens + behind : (behind - open_slots) % kBlockTokens;
  }
  // How many tokens an open run has when `count` tokens are written.
  KVDEPOT_HOST_DEVICE uint32_t TokensIn(uint32_t open_run, uint32_t count) const {
    if (open_run == 0) return open_tokens + (count < open_slots ? count : open_slots);
    const uint32_t before = open_slots + (open_run - 1) * kBlockTokens;
    if (count <= before) return 0;
    return count - before < kBlockTokens ? count - before : kBlockTokens;
  }
  // Runs of `exact` that have tokens when `count` are written.
  KVDEPOT_HOST_DEVICE uint32_t ExactRuns(uint32_t count) const {
    if (count == 0) return first_open + (open_tokens > 0 ? 1 : 0);
    return first_open + OpenRun(count - 1) + 1;
  }
};

// A new directory's view of a layer, in host memory that the device reads.
struct MappedUpdate {
  // Its lists are where they go in device memory; `written` is not used.
  MappedLayer next;
  MappedLayer* layer = nullptr;
  // What goes there, null: stays as it is. Lists count every open run as full.
  const CodedRun* coded = nullptr;
  const ExactRun* exact = nullptr;
  const DeviceHead* heads = nullptr;
  const uint32_t* block_cost_bytes = nullptr;
  uint32_t exact_runs = 0;
  uint32_t kv_heads = 0;
  // Tokens written behind the old directory stay, as far as they are behind the new one.
  bool keeps_written = false;
};

// One session of a call.
struct MappedQuery {
  MappedLayer* layer = nullptr;
  MappedFlag* flag = nullptr;
  // [token][kv_head][channel] of `tokens` tokens to write first; null: none.
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  const std::byte* q = nullptr;
  float* output = nullptr;
  float* log_sum_exp = nullptr;
};

// What a launch takes as its parameters.
inline constexpr int kMappedQueriesMax = 48;

struct MappedBatch {
  MappedQuery queries[kMappedQueriesMax];
  uint32_t query_count = 0;
  uint32_t layer_index = 0;  // for flags
  uint32_t tokens = 0;       // of each query, to write; at most kFusedTokensMax
  uint32_t query_tokens = 0;
  uint32_t kv_heads = 0;
  uint32_t query_heads = 0;
  uint32_t head_dim = 0;
  DType dtype = DType::kBf16;
  float scale = 0;  // as AttendCell's
  // [query_count] and [query_count][kv_heads]: made for the attend launch.
  AttendCell* cells = nullptr;
  uint32_t* block_cost_bytes = nullptr;
};

// More tokens are written by a launch of their own.
inline constexpr int kFusedTokensMax = 16;

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_MAPPED_LAYER_H_
