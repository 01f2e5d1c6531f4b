// How a batch of queries is cut into pieces of bounded work.
#ifndef KVDEPOT_SERVER_ATTEND_PIECES_H_
#define KVDEPOT_SERVER_ATTEND_PIECES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvdepot {

// One session's queries: query i stands at query_position + i and sees what is before and at its
// position, of that the newest `sliding_window` tokens unless that is 0.
struct QuerySpan {
  uint64_t query_position = 0;
  int query_tokens = 0;
  int query_heads = 0;
  int sliding_window = 0;
};

// Queries [first, first + count) of span number `span`.
struct QuerySlice {
  size_t span = 0;
  int first = 0;
  int count = 0;
};

using AttendPiece = std::vector<QuerySlice>;

// Covers all queries in order. A piece has at most `row_tokens_max` (query, head, visible token),
// or a single query.
std::vector<AttendPiece> CutIntoPieces(const std::vector<QuerySpan>& spans,
                                       uint64_t row_tokens_max);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ATTEND_PIECES_H_
