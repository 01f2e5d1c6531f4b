#include "gpu/seal_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace kvdepot {
namespace {

constexpr SealRule kRule = {64, 256, 256, 1024};

struct Case {
  uint64_t undecided;
  uint64_t addition;
  DecidedSegments expected;
};

TEST(SealRuleTest, DecodingSeals256OnceAWindowAnd256AreThere) {
  const Case cases[] = {
      {0, 1, {}},        {63, 1, {}},       {319, 1, {}},         {320, 1, {256}},
      {383, 255, {256}}, {575, 255, {256}}, {576, 1, {256, 256}}, {832, 255, {256, 256, 256}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(DecideAtEnd(kRule, c.undecided, c.addition), c.expected) << c.undecided;
  }
}

TEST(SealRuleTest, APromptIsSealedUpToItsWindow) {
  const Case cases[] = {
      {64, 256, {}},
      {127, 256, {}},
      {128, 256, {64}},
      {256, 256, {192}},
      {1088, 1088, {1024}},
      {1151, 1151, {1024}},
      {1152, 1152, {1024, 64}},
      {319, 300, {192}},
      {3000, 2984, {1024, 1024, 832}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(DecideAtEnd(kRule, c.undecided, c.addition), c.expected) << c.undecided;
  }
}

TEST(SealRuleTest, DuringAPromptFullSegmentsThatLeaveTheWindowAreDecided) {
  EXPECT_EQ(DecideDuringAddition(kRule, 5000, 255), DecidedSegments());
  EXPECT_EQ(DecideDuringAddition(kRule, 1087, 1087), DecidedSegments());
  EXPECT_EQ(DecideDuringAddition(kRule, 1088, 256), DecidedSegments({1024}));
  EXPECT_EQ(DecideDuringAddition(kRule, 2200, 2200), DecidedSegments({1024, 1024}));
}

TEST(SealRuleTest, AnExplicitSealLeavesTheWindow) {
  EXPECT_EQ(DecideToWindow(kRule, 64), DecidedSegments());
  EXPECT_EQ(DecideToWindow(kRule, 319), DecidedSegments({192}));
  EXPECT_EQ(DecideToWindow(kRule, 2176), DecidedSegments({1024, 1024, 64}));
}

uint64_t Sum(const DecidedSegments& segments) {
  uint64_t sum = 0;
  for (const int tokens : segments) sum += static_cast<uint64_t>(tokens);
  return sum;
}

TEST(SealRuleTest, HowAnAdditionIsChunkedDoesNotMatter) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t before = random() % 400;
    const uint64_t addition = 1 + random() % 6000;
    const DecidedSegments at_once = DecideAtEnd(kRule, before + addition, addition);
    DecidedSegments chunked;
    uint64_t undecided = before;
    for (uint64_t stored = 0; stored < addition;) {
      const uint64_t chunk = std::min<uint64_t>(addition - stored, 1 + random() % 1500);
      stored += chunk;
      undecided += chunk;
      const DecidedSegments decided = DecideDuringAddition(kRule, undecided, stored);
      chunked.insert(chunked.end(), decided.begin(), decided.end());
      undecided -= Sum(decided);
      ASSERT_TRUE(stored < 256 || undecided < 1088);
    }
    const DecidedSegments rest = DecideAtEnd(kRule, undecided, addition);
    chunked.insert(chunked.end(), rest.begin(), rest.end());
    ASSERT_EQ(chunked, at_once) << before << " and " << addition;
  }
}

TEST(SealRuleTest, ADecodingTailHas64To320Tokens) {
  uint64_t undecided = 0;
  for (int token = 0; token < 5000; ++token) {
    ++undecided;
    undecided -= Sum(DecideAtEnd(kRule, undecided, 1));
    ASSERT_LT(undecided, 320u);
    ASSERT_TRUE(token < 320 || undecided >= 64);
  }
}

}  // namespace
}  // namespace kvdepot
