#include "client/kivi_reference.h"

#include <cmath>

#include "client/synthetic_kv.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

KvArrays Synthetic(int tokens) {
  const SyntheticKv bytes = MakeSyntheticKv({tokens, 0, 2, 2, 64}, 7);
  return {tokens, 2, 64, FloatsFromBf16(bytes.k), FloatsFromBf16(bytes.v)};
}

// Values 0..3 times a scale that fp16 holds are its own levels.
TEST(KiviReferenceTest, FourEvenLevelsAreExact) {
  KvArrays kv = {4, 1, 4, {}, {}};
  for (int i = 0; i < 16; ++i) kv.k.push_back(1 + 0.5f * (i / 4));  // Per channel: 1, 1.5, 2, 2.5.
  for (int i = 0; i < 16; ++i) kv.v.push_back(-2 + 0.25f * (i % 4));
  const KvArrays before = kv;
  QuantizeLikeKivi(0, 4, 2, &kv);
  EXPECT_EQ(kv.k, before.k);
  EXPECT_EQ(kv.v, before.v);
}

// Group 0 .. 3 with one value in between: 1.4 goes to level 1, 1.6 to level 2.
TEST(KiviReferenceTest, OtherValuesGoToTheNearestLevel) {
  KvArrays kv = {4, 1, 1, {0, 1.4f, 1.6f, 3}, {5, 6, 7, 8}};
  QuantizeLikeKivi(0, 4, 2, &kv);
  EXPECT_EQ(kv.k, (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(kv.v, (std::vector<float>{5, 6, 7, 8}));  // Groups of one value.
}

TEST(KiviReferenceTest, OnlyTheRangeChanges) {
  const KvArrays before = Synthetic(100);
  KvArrays kv = before;
  QuantizeLikeKivi(16, 80, 2, &kv);
  for (int token = 0; token < 100; ++token) {
    const bool same_k = std::equal(&kv.k[kv.At(token, 0)], &kv.k[kv.At(token, 0)] + 128,
                                   &before.k[kv.At(token, 0)]);
    EXPECT_EQ(same_k, token < 16 || token >= 80) << token;
  }
}

TEST(KiviReferenceTest, ErrorIsHalfALevelAtMostAndRoundingOfScaleAndZero) {
  const KvArrays before = Synthetic(64);
  KvArrays kv = before;
  QuantizeLikeKivi(0, 64, 2, &kv);
  for (int channel = 0; channel < 128; ++channel) {
    for (int group = 0; group < 2; ++group) {
      float low = INFINITY;
      float high = -INFINITY;
      for (int i = 0; i < kKiviGroup; ++i) {
        const float value = before.k[kv.At(group * kKiviGroup + i, 0) + channel];
        low = std::min(low, value);
        high = std::max(high, value);
      }
      const float bound = (high - low) / 6 + 0.002f * (std::abs(low) + std::abs(high));
      for (int i = 0; i < kKiviGroup; ++i) {
        const size_t at = kv.At(group * kKiviGroup + i, 0) + channel;
        EXPECT_LE(std::abs(kv.k[at] - before.k[at]), bound);
      }
    }
  }
}

TEST(KiviReferenceTest, FourBitsHaveSixteenLevels) {
  KvArrays kv = {16, 1, 1, {}, {}};
  for (int i = 0; i < 16; ++i) kv.k.push_back(0.25f * i);
  kv.v = kv.k;
  const KvArrays before = kv;
  QuantizeLikeKivi(0, 16, 4, &kv);
  EXPECT_EQ(kv.k, before.k);
  EXPECT_EQ(KiviBitsPerValue(4), 5.0);
}

TEST(SyntheticKvTest, SameSeedSameBytes) {
  const SyntheticShape shape = {10, 3, 2, 4, 64};
  EXPECT_EQ(MakeSyntheticKv(shape, 1).k, MakeSyntheticKv(shape, 1).k);
  EXPECT_NE(MakeSyntheticKv(shape, 1).k, MakeSyntheticKv(shape, 2).k);
  EXPECT_EQ(MakeSyntheticKv(shape, 1).k.size(), 10u * 2 * 64 * 2);
  EXPECT_EQ(MakeSyntheticKv(shape, 1).q.size(), 3u * 4 * 64 * 2);
}

}  // namespace
}  // namespace kvdepot
