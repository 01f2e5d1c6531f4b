// Quotients by way of reciprocals against the division of the processor. The proof is in
// gpu/planes/division.h; all 2^33 pairs of mantissas were compared once.
#include "gpu/planes/division.h"

#include <cmath>
#include <random>

#include "gpu/numeric.h"
#include "gpu/planes/codec.h"
#include "gtest/gtest.h"

namespace kvdepot::planes {
namespace {

TEST(DivisionTest, EqualsDivisionForEveryDivisorsMantissa) {
  std::mt19937 random(1);
  for (uint32_t mantissa = 1024; mantissa < 2048; ++mantissa) {
    const float divisor = static_cast<float>(mantissa) / 1024;
    const Reciprocal reciprocal = ReciprocalOf(divisor);
    for (int i = 0; i < 2000; ++i) {
      const float x = FloatFromBits(0x3F800000u | (random() & 0x7FFFFFu));
      ASSERT_EQ(FloatBits(Divide(x, reciprocal)), FloatBits(x / divisor)) << x << " " << divisor;
    }
  }
}

// A token scale or a step, as the codec makes them.
float RandomDivisor(std::mt19937& random) {
  if (random() % 2 == 0) return TokenScaleValue(static_cast<uint8_t>(random()));
  uint16_t stored = static_cast<uint16_t>(random() % 0x7C00u);
  if (stored < kStoredScaleMinFp16) stored = kStoredScaleMinFp16;
  return Fp16ToFloat(stored) * StepFactor(1 + static_cast<int>(random() % 4));
}

TEST(DivisionTest, EqualsDivisionFromDenormalsToOverflow) {
  std::mt19937 random(2);
  for (int i = 0; i < 3'000'000; ++i) {
    const float x = FloatFromBits(static_cast<uint32_t>(random()));
    if (!IsFiniteFloat(x)) continue;
    const float divisor = RandomDivisor(random);
    const float quotient = x / divisor;
    const float quick = Divide(x, ReciprocalOf(divisor));
    if (std::fabs(quotient) >= 0x1p100f) {
      ASSERT_TRUE(std::isinf(quick * quick)) << x << " " << divisor;
    } else if (std::fabs(quotient) >= 0x1p-100f) {
      ASSERT_EQ(FloatBits(quick), FloatBits(quotient)) << x << " " << divisor;
    } else {
      ASSERT_LT(std::fabs(quick), 0x1p-99f) << x << " " << divisor;
    }
  }
}

}  // namespace
}  // namespace kvdepot::planes
