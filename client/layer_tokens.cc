#include "client/layer_tokens.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

// Tags, lengths, session id and query_second_moments of a message: at most a few kilobytes and the
// moments.
constexpr uint64_t kEnvelopeBytes = 4096;

bool AreInBuffer(const LayerTokens& tokens) { return tokens.k_range.size_bytes() > 0; }

v1::BufferRange Part(v1::BufferRange range, uint64_t first_byte, uint64_t size_bytes) {
  range.set_offset(range.offset() + first_byte);
  range.set_size_bytes(size_bytes);
  return range;
}

}  // namespace

absl::StatusOr<uint64_t> ChunkTokens(const LayerTokens& tokens, uint64_t message_bytes_max) {
  const bool in_buffer = AreInBuffer(tokens);
  const uint64_t k_bytes = in_buffer ? tokens.k_range.size_bytes() : tokens.k.size();
  const uint64_t v_bytes = in_buffer ? tokens.v_range.size_bytes() : tokens.v.size();
  if (tokens.token_count == 0 || k_bytes == 0 || k_bytes != v_bytes ||
      k_bytes % tokens.token_count != 0) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", tokens.layer, ": k of ", k_bytes,
                                                   " bytes and v of ", v_bytes, " bytes are not ",
                                                   tokens.token_count, " equal rows"));
  }
  // The daemon takes as much of either from a buffer as of both from a message.
  if (in_buffer) {
    return std::clamp<uint64_t>(message_bytes_max / (k_bytes / tokens.token_count), 1,
                                tokens.token_count);
  }
  const uint64_t token_bytes = 2 * k_bytes / tokens.token_count;
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
  v1::TokenChunk chunk;
  chunk.set_layer(tokens.layer);
  chunk.set_position(tokens.position + first);
  chunk.set_token_count(static_cast<uint32_t>(count));
  if (AreInBuffer(tokens)) {
    const uint64_t row_bytes = tokens.k_range.size_bytes() / tokens.token_count;
    *chunk.mutable_k_range() = Part(tokens.k_range, first * row_bytes, count * row_bytes);
    *chunk.mutable_v_range() = Part(tokens.v_range, first * row_bytes, count * row_bytes);
    return chunk;
  }
  const uint64_t row_bytes = tokens.k.size() / tokens.token_count;
  const absl::string_view k = tokens.k.substr(first * row_bytes, count * row_bytes);
  const absl::string_view v = tokens.v.substr(first * row_bytes, count * row_bytes);
  chunk.set_k(k.data(), k.size());
  chunk.set_v(v.data(), v.size());
  return chunk;
}

}  // namespace kvdepot
