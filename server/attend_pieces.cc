#include "server/attend_pieces.h"

#include <algorithm>

namespace kvdepot {
namespace {

uint64_t RowTokens(const QuerySpan& span, int query) {
  uint64_t visible = span.query_position + static_cast<uint64_t>(query) + 1;
  if (span.sliding_window > 0) {
    visible = std::min(visible, static_cast<uint64_t>(span.sliding_window));
  }
  return visible * static_cast<uint64_t>(span.query_heads);
}

}  // namespace

std::vector<AttendPiece> CutIntoPieces(const std::vector<QuerySpan>& spans,
                                       uint64_t row_tokens_max) {
  std::vector<AttendPiece> pieces;
  uint64_t room = 0;
  for (size_t s = 0; s < spans.size(); ++s) {
    for (int query = 0; query < spans[s].query_tokens; ++query) {
      const uint64_t row_tokens = RowTokens(spans[s], query);
      if (pieces.empty() || row_tokens > room) {
        pieces.emplace_back();
        room = row_tokens_max;
      }
      AttendPiece& piece = pieces.back();
      if (piece.empty() || piece.back().span != s) piece.push_back({s, query, 0});
      ++piece.back().count;
      room -= std::min(room, row_tokens);
    }
  }
  return pieces;
}

}  // namespace kvdepot
