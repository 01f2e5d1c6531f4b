#include "client/exact_attention.h"

#include <cmath>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(ExactAttentionTest, OneTokenGivesItsValue) {
  const KvArrays kv = {1, 1, 2, {3, 4}, {5, 6}};
  const ExactOutput exact = ExactAttention(kv, {1, 2}, 0.5);
  EXPECT_DOUBLE_EQ(exact.output[0], 5);
  EXPECT_DOUBLE_EQ(exact.output[1], 6);
  EXPECT_DOUBLE_EQ(exact.log_sum_exp[0], 0.5 * (3 + 8));
}

// Scores 0 and ln 3: weights 1/4 and 3/4.
TEST(ExactAttentionTest, TwoTokensWorkedByHand) {
  const float ln3 = std::log(3.0f);
  const KvArrays kv = {2, 1, 2, {0, 7, ln3, 7}, {4, 0, 8, 4}};
  const ExactOutput exact = ExactAttention(kv, {1, 0}, 1);
  EXPECT_NEAR(exact.output[0], 0.25 * 4 + 0.75 * 8, 1e-6);
  EXPECT_NEAR(exact.output[1], 0.75 * 4, 1e-6);
  EXPECT_NEAR(exact.log_sum_exp[0], std::log(4.0), 1e-6);
}

// Four query heads, two KV heads: heads 0 and 1 read KV head 0, heads 2 and 3 read KV head 1.
TEST(ExactAttentionTest, QueryHeadsShareKvHeadsInOrder) {
  const KvArrays kv = {1, 2, 1, {1, 1}, {10, 20}};
  const ExactOutput exact = ExactAttention(kv, {1, 2, 3, 4}, 1);
  EXPECT_EQ(exact.output, (std::vector<double>{10, 10, 20, 20}));
  EXPECT_EQ(exact.log_sum_exp, (std::vector<double>{1, 2, 3, 4}));
}

TEST(ExactAttentionTest, LargeScoresDoNotOverflow) {
  const KvArrays kv = {2, 1, 1, {1e4f, 2e4f}, {1, 2}};
  const ExactOutput exact = ExactAttention(kv, {1}, 1);
  EXPECT_DOUBLE_EQ(exact.output[0], 2);
  EXPECT_DOUBLE_EQ(exact.log_sum_exp[0], 2e4);
}

// Head 0: |(0, 5)| / |(3, 4)| = 1. Head 1: |(0, 1)| / |(0, 2)| = 1/2.
TEST(RelativeErrorTest, IsTheMeanOverHeads) {
  EXPECT_DOUBLE_EQ(RelativeError({3, 9, 0, 1}, {3, 4, 0, 2}, 2), 0.75);
  EXPECT_DOUBLE_EQ(RelativeError({3, 4}, {3, 4}, 2), 0);
}

}  // namespace
}  // namespace kvdepot
