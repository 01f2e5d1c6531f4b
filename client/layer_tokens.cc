#include "client/layer_tokens.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

// Tags, lengths, session id and query_second_moments of a message: at most a few kilobytes and the
// moments.
constexpr uint64_t kEnvelopeBytes = 4096;

}  // namespace

absl::StatusOr<uint64_t> ChunkTokens(const LayerTokens& tokens, uint64_t message_bytes_max) {
  if (tokens.token_count == 0 || tokens.k.empty() || tokens.k.size() != tokens.v.size() ||
      tokens.k.size() % tokens.token_count != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", tokens.layer, ": k of ", tokens.k.size(), " bytes and v of ",
                     tokens.v.size(), " bytes are not ", tokens.token_count, " equal rows"));
  }
  const uint64_t token_bytes = 2 * tokens.k.size() / tokens.token_count;
  const uint64_t envelope_bytes =
      kEnvelopeBytes + tokens.query_second_moments.size() * sizeof(float);
  if (token_bytes + envelope_bytes > message_bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat("layer ", tokens.layer, ": one token takes ",
                                                     token_bytes, " bytes, message_bytes_max is ",
                                                     message_bytes_max));
  }
  const uint64_t room_bytes = std::min(message_bytes_max - envelope_bytes, kChunkBytes);
  return std::clamp<uint64_t>(room_bytes / token_bytes, 1, tokens.token_count);
}

v1::TokenChunk MakeChunk(const LayerTokens& tokens, uint64_t first, uint64_t count) {
  const uint64_t row_bytes = tokens.k.size() / tokens.token_count;
  const absl::string_view k = tokens.k.substr(first * row_bytes, count * row_bytes);
  const absl::string_view v = tokens.v.substr(first * row_bytes, count * row_bytes);
  v1::TokenChunk chunk;
  chunk.set_layer(tokens.layer);
  chunk.set_position(tokens.position + first);
  chunk.set_token_count(static_cast<uint32_t>(count));
  chunk.set_k(k.data(), k.size());
  chunk.set_v(v.data(), v.size());
  return chunk;
}

}  // namespace kvdepot
