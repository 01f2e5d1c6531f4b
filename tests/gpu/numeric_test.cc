#include "gpu/numeric.h"

#include <cmath>
#include <cstdint>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

bool IsNan16(uint16_t bits, uint16_t exponent) {
  return (bits & exponent) == exponent && (bits & (0x7FFF & ~exponent)) != 0;
}

TEST(NumericTest, EveryFp16ComesBackAfterAWayThroughFp32) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const uint16_t back = FloatToFp16(Fp16ToFloat(half));
    if (IsNan16(half, 0x7C00)) {
      EXPECT_TRUE(IsNan16(back, 0x7C00)) << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

TEST(NumericTest, EveryBf16ComesBackAfterAWayThroughFp32) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const uint16_t back = FloatToBf16(Bf16ToFloat(half));
    if (IsNan16(half, 0x7F80)) {
      EXPECT_TRUE(IsNan16(back, 0x7F80)) << bits;
    } else {
      ASSERT_EQ(back, half);
    }
  }
}

// Value of fp16 bits by definition.
double Fp16Definition(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24)
                       : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(NumericTest, Fp16ValuesAreThoseOfTheDefinition) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7C00) == 0x7C00) continue;
    ASSERT_EQ(static_cast<double>(Fp16ToFloat(static_cast<uint16_t>(bits))),
              Fp16Definition(static_cast<uint16_t>(bits)));
  }
}

// Between two neighbours lies one tie, which goes to the even one; everything else to the nearer.
TEST(NumericTest, Fp16RoundsToNearestEvenBetweenAllNeighbours) {
  for (uint16_t bits = 0; bits < 0x7BFF; ++bits) {
    const double low = Fp16Definition(bits);
    const double high = Fp16Definition(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);  // exact
    const uint16_t even = bits % 2 == 0 ? bits : static_cast<uint16_t>(bits + 1);
    ASSERT_EQ(FloatToFp16(middle), even) << bits;
    ASSERT_EQ(FloatToFp16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(FloatToFp16(std::nextafter(middle, 1e9f)), bits + 1);
    ASSERT_EQ(FloatToFp16(-middle), even | 0x8000);
  }
  EXPECT_EQ(FloatToFp16(65519.996f), 0x7BFF);
  EXPECT_EQ(FloatToFp16(65520.0f), 0x7C00);
  EXPECT_EQ(FloatToFp16(INFINITY), 0x7C00);
  EXPECT_EQ(FloatToFp16(-1e30f), 0xFC00);
}

TEST(NumericTest, Bf16RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    const uint32_t tie = bits << 16 | 0x8000;
    ASSERT_EQ(FloatToBf16(FloatFromBits(tie)), bits + bits % 2);
    ASSERT_EQ(FloatToBf16(FloatFromBits(tie - 1)), bits);
    ASSERT_EQ(FloatToBf16(FloatFromBits(tie + 1)), bits + 1);
  }
}

}  // namespace
}  // namespace kvdepot
