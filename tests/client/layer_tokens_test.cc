#include "client/layer_tokens.h"

#include <string>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(ChunkTokensTest, StaysBelowTheMessageLimit) {
  const std::string bytes(100 * 1024, 'x');
  const LayerTokens tokens = {0, 0, 100, bytes, bytes, {}};  // 2 KiB a token.
  EXPECT_EQ(*ChunkTokens(tokens, 1 << 30), 100u);
  EXPECT_EQ(*ChunkTokens(tokens, 4096 + 2048), 1u);
  EXPECT_EQ(*ChunkTokens(tokens, 4096 + 2048 * 7 + 1), 7u);
  EXPECT_EQ(ChunkTokens(tokens, 4096 + 2047).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ChunkTokensTest, LeavesRoomForMoments) {
  const std::string bytes(2048, 'x');
  LayerTokens tokens = {0, 0, 2, bytes, bytes, {}};
  tokens.query_second_moments.assign(512, 1.0f);
  EXPECT_EQ(*ChunkTokens(tokens, 4096 + 2048 + 4096), 2u);
  EXPECT_EQ(*ChunkTokens(tokens, 4096 + 2048 + 2048), 1u);
}

TEST(ChunkTokensTest, RefusesWhatAreNoRows) {
  const auto code = [](const LayerTokens& tokens) {
    return ChunkTokens(tokens, 1 << 20).status().code();
  };
  EXPECT_EQ(code({0, 0, 0, "", "", {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({0, 0, 2, "", "", {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({0, 0, 2, "abc", "abc", {}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({0, 0, 2, "abcd", "ab", {}}), absl::StatusCode::kInvalidArgument);
}

TEST(MakeChunkTest, CopiesTheRowsInBetween) {
  const LayerTokens tokens = {3, 10, 4, "aabbccdd", "AABBCCDD", {}};
  const v1::TokenChunk chunk = MakeChunk(tokens, 1, 2);
  EXPECT_EQ(chunk.layer(), 3u);
  EXPECT_EQ(chunk.position(), 11u);
  EXPECT_EQ(chunk.token_count(), 2u);
  EXPECT_EQ(chunk.k(), "bbcc");
  EXPECT_EQ(chunk.v(), "BBCC");
}

TEST(MakeChunkTest, DividesRangesOfABuffer) {
  LayerTokens tokens = {3, 10, 10, "", "", {}};
  tokens.k_range.set_offset(1000);
  tokens.k_range.set_size_bytes(320);
  tokens.v_range.set_offset(5000);
  tokens.v_range.set_size_bytes(320);
  EXPECT_EQ(*ChunkTokens(tokens, 1 << 20), 10u);
  EXPECT_EQ(*ChunkTokens(tokens, 127), 3u);
  EXPECT_EQ(*ChunkTokens(tokens, 1), 1u);
  const v1::TokenChunk chunk = MakeChunk(tokens, 3, 4);
  EXPECT_EQ(chunk.position(), 13u);
  EXPECT_EQ(chunk.token_count(), 4u);
  EXPECT_EQ(chunk.k_range().offset(), 1096u);
  EXPECT_EQ(chunk.k_range().size_bytes(), 128u);
  EXPECT_EQ(chunk.v_range().offset(), 5096u);
  EXPECT_EQ(chunk.v_range().size_bytes(), 128u);
  EXPECT_EQ(chunk.k(), "");
  tokens.v_range.set_size_bytes(304);
  EXPECT_EQ(ChunkTokens(tokens, 1 << 20).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvdepot
