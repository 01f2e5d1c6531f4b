#include "client/codec_bench/equal_error.h"

#include <cmath>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

// A tenth of the error for each bit from 2 on.
const std::vector<ErrorPoint> kCurve = {{4, 0.001}, {2, 0.1}, {3, 0.01}};

TEST(EqualErrorTest, InterpolatesInTheErrorsLogarithm) {
  const auto ratio = RatioAtError({5, std::sqrt(0.1 * 0.01)}, kCurve);
  ASSERT_TRUE(ratio.has_value());
  EXPECT_NEAR(ratio->ratio, 5 / 2.5, 1e-12);
  EXPECT_FALSE(ratio->is_lower_bound);
  EXPECT_NEAR(RatioAtError({6, 0.01}, kCurve)->ratio, 6.0 / 3, 1e-12);
}

TEST(EqualErrorTest, OutsideOfWhatWasMeasured) {
  EXPECT_FALSE(RatioAtError({3, 0.0009}, kCurve).has_value());
  EXPECT_FALSE(RatioAtError({3, 0.1}, {}).has_value());
  const auto better = RatioAtError({3, 0.2}, kCurve);
  ASSERT_TRUE(better.has_value());
  EXPECT_TRUE(better->is_lower_bound);
  EXPECT_NEAR(better->ratio, 1.5, 1e-12);
}

TEST(EqualErrorTest, TheFewestBitsCountWhereAnErrorComesTwice) {
  const auto ratio = RatioAtError({4, 0.05}, {{1, 0.1}, {2, 0.025}, {3, 0.1}, {4, 0.01}});
  ASSERT_TRUE(ratio.has_value());
  EXPECT_NEAR(ratio->ratio, 4 / 1.5, 1e-12);
}

TEST(EqualErrorTest, OnlyLessOfBothBeats) {
  EXPECT_EQ(NotBeaten({{1, 0.3}, {2, 0.2}, {2, 0.1}, {3, 0.1}, {4, 0.05}, {1, 0.3}}),
            (std::vector<bool>{true, false, true, false, true, true}));
}

}  // namespace
}  // namespace kvdepot
