// The engine's vocabulary: what a session is made of and what calls carry, without protobuf and
// gRPC.
#ifndef KVDEPOT_SERVER_SESSION_TYPES_H_
#define KVDEPOT_SERVER_SESSION_TYPES_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gpu/packkv/options.h"
#include "gpu/shape.h"
#include "server/call_memory.h"

namespace kvdepot {

// Who calls, and how long they wait. `cancelled` is asked right before work starts and between its
// pieces; it must be callable from any thread until the call's `done` has run. Null: never
// cancelled.
struct Caller {
  std::string tenant;
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled;
  // In whose name the call changes a session that is mapped for writing. Empty: no lease's.
  std::string lease_id = {};
};

// What CreateSession asks for, with defaults filled in. Two sessions of one name are the same if
// all of this but time_to_live and query_second_moments is equal.
struct SessionSpec {
  std::string name;
  std::string model;
  std::vector<LayerShape> layers;
  DType dtype = DType::kBf16;
  Codec codec = Codec::kPlanes;
  Profile profile = Profile::kCompact;  // Of planes; without meaning for others.
  packkv::Options packkv;               // Of packkv; without meaning for others.
  // Of planes: hash, or empty for the session's own. Of packkv that normalises: hash, or empty.
  std::string calibration;
  absl::Duration time_to_live = absl::InfiniteDuration();
  std::vector<std::vector<float>>
      query_second_moments;  // Empty, or one entry a layer: [kv_head][channel] or empty.
};

struct LayerState {
  uint64_t token_count = 0;
  uint64_t sealed_end = 0;  // 0 until something is sealed.
};

// A consistent copy of a session's state.
struct SessionInfo {
  std::string id;
  SessionSpec spec;  // Without query_second_moments.
  uint64_t generation = 1;
  std::vector<LayerState> layers;
  uint64_t committed_token_count = 0;
  uint64_t durable_token_count = 0;
  uint64_t logical_bytes = 0;
  uint64_t stored_bytes = 0;
  absl::Time create_time;
  absl::Time expire_time = absl::InfiniteFuture();
};

// Tokens of one layer. k and v are [token][kv_head][channel] in the session's dtype; those of a
// message stay valid until the call's `done` has run, here and below.
struct TokenChunk {
  int layer = 0;
  uint64_t position = 0;
  uint64_t token_count = 0;
  CallInput k;
  CallInput v;                              // of the same kind of memory as k
  std::vector<float> query_second_moments;  // [kv_head][channel] or empty.
};

// Query tokens and where their results go: `q` is [query token][query_head][channel] in the
// session's dtype, the results are as in AttendResult. Both are in the reply or neither.
struct QueryTokens {
  uint64_t query_tokens = 0;
  CallInput q;
  CallOutput output;
  CallOutput log_sum_exp;
};

// Queries of one session.
struct AttendQuery : QueryTokens {
  std::string session_id;
  uint64_t token_count = 0;  // Position after the last query; 0: the committed count.
};

// An addition and its queries, in one.
struct DecodeStep : QueryTokens {
  std::string session_id;
  uint64_t generation = 0;
  TokenChunk chunk;
};

// Little-endian fp32 arrays as bytes, so that a reply takes them over without a copy. Empty where
// they are in buffers.
struct AttendResult {
  std::string output;       // [query token][query_head][channel]
  std::string log_sum_exp;  // [query token][query_head]
  uint64_t token_count = 0;
};

// Tokens of one layer that are wanted as values of `dtype`: [token][kv_head][channel].
struct FetchRange {
  std::string session_id;
  int layer = 0;
  uint64_t position = 0;
  uint64_t token_count = 0;  // 0: to the end of the layer.
  DType dtype = DType::kBf16;
  // Of `token_count` tokens at least. Both are in the reply or neither.
  CallOutput k = {};
  CallOutput v = {};
  // Goes on from an answer that was given: a drain does not refuse the rest.
  bool is_rest = false;
};

// What came of a FetchRange's beginning. k and v are empty where they are in buffers.
struct FetchedTokens {
  uint64_t position = 0;
  uint64_t token_count = 0;
  // Of the range asked for, behind these.
  uint64_t remaining_tokens = 0;
  std::string k;
  std::string v;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_TYPES_H_
