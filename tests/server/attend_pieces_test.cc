#include "server/attend_pieces.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

namespace kvdepot {
namespace {

using Cut = std::vector<std::vector<std::vector<int>>>;

// [piece][slice] = {span, first, count}
Cut Flat(const std::vector<AttendPiece>& pieces) {
  Cut flat;
  for (const AttendPiece& piece : pieces) {
    flat.emplace_back();
    for (const QuerySlice& slice : piece) {
      flat.back().push_back({static_cast<int>(slice.span), slice.first, slice.count});
    }
  }
  return flat;
}

TEST(AttendPiecesTest, WhatFitsIsOnePiece) {
  EXPECT_EQ(Flat(CutIntoPieces({{99, 1, 4, 0}, {49, 1, 4, 0}}, 600)),
            Cut({{{0, 0, 1}, {1, 0, 1}}}));
}

TEST(AttendPiecesTest, ABatchIsCutBetweenSessions) {
  EXPECT_EQ(Flat(CutIntoPieces({{99, 1, 4, 0}, {49, 1, 4, 0}}, 599)),
            Cut({{{0, 0, 1}}, {{1, 0, 1}}}));
}

TEST(AttendPiecesTest, ManyQueriesAreCutBetweenThem) {
  // Queries see 1, 2, 3, 4 tokens.
  EXPECT_EQ(Flat(CutIntoPieces({{0, 4, 2, 0}}, 6)), Cut({{{0, 0, 2}}, {{0, 2, 1}}, {{0, 3, 1}}}));
}

TEST(AttendPiecesTest, ASingleQueryIsNeverCut) {
  EXPECT_EQ(Flat(CutIntoPieces({{1000, 2, 8, 0}}, 1)), Cut({{{0, 0, 1}}, {{0, 1, 1}}}));
}

TEST(AttendPiecesTest, ASlidingWindowBoundsWhatAQuerySees) {
  EXPECT_EQ(Flat(CutIntoPieces({{1000, 4, 1, 10}}, 20)), Cut({{{0, 0, 2}}, {{0, 2, 2}}}));
}

TEST(AttendPiecesTest, EveryQueryIsInOnePieceAndInOrder) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    std::vector<QuerySpan> spans(1 + random() % 5);
    for (QuerySpan& span : spans) {
      span = {random() % 300, static_cast<int>(1 + random() % 40),
              static_cast<int>(1 + random() % 8), static_cast<int>(random() % 3 * 50)};
    }
    size_t span = 0;
    int query = 0;
    for (const AttendPiece& piece : CutIntoPieces(spans, 1 + random() % 5000)) {
      ASSERT_FALSE(piece.empty());
      for (const QuerySlice& slice : piece) {
        if (query == spans[span].query_tokens) {
          ++span;
          query = 0;
        }
        ASSERT_EQ(slice.span, span);
        ASSERT_EQ(slice.first, query);
        ASSERT_GT(slice.count, 0);
        query += slice.count;
      }
    }
    EXPECT_EQ(span, spans.size() - 1);
    EXPECT_EQ(query, spans.back().query_tokens);
  }
}

}  // namespace
}  // namespace kvdepot
