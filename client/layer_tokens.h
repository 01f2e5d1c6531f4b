// Keys and values of one layer in the caller's memory, and how they are cut into messages.
#ifndef KVDEPOT_CLIENT_LAYER_TOKENS_H_
#define KVDEPOT_CLIENT_LAYER_TOKENS_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvdepot/v1/session.pb.h"

namespace kvdepot {

// Consecutive tokens: k and v are [token][kv_head][channel] in the session's dtype, dense.
struct LayerTokens {
  uint32_t layer = 0;
  // Position of the first token in the session.
  uint64_t position = 0;
  uint64_t token_count = 0;
  absl::string_view k;
  absl::string_view v;
  // Mean of q^2, [kv_head][channel], or empty: what a session without a calibration learns K's
  // weights from.
  std::vector<float> query_second_moments;
  // In place of k and v, in registered buffers (registered_buffer.h); size_bytes 0: not used.
  v1::BufferRange k_range = {};
  v1::BufferRange v_range = {};
};

// Bytes in one message, where it has tokens itself. Large messages cost fewer calls into gRPC,
// small ones overlap better with the daemon's work; this is where one core stopped gaining.
inline constexpr uint64_t kChunkBytes = uint64_t{1} << 20;

// Tokens per message, as many as fit `message_bytes_max`. INVALID_ARGUMENT where k and v are not
// `token_count` equal rows, RESOURCE_EXHAUSTED where not even one token fits.
absl::StatusOr<uint64_t> ChunkTokens(const LayerTokens& tokens, uint64_t message_bytes_max);

// Tokens [first, first + count) of `tokens`, copied, or their ranges.
v1::TokenChunk MakeChunk(const LayerTokens& tokens, uint64_t first, uint64_t count);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_LAYER_TOKENS_H_
