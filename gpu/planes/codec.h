// The arithmetic of `planes`, one step a function, the same on host and device. Loops around it fix
// the order of sums (gpu/FORMAT.md, "Arithmetic"); translation units that use it are compiled
// without contraction to fused operations.
#ifndef KVDEPOT_GPU_PLANES_CODEC_H_
#define KVDEPOT_GPU_PLANES_CODEC_H_

#include <cstdint>

#include "gpu/host_device.h"
#include "gpu/numeric.h"
#include "gpu/planes/division.h"

namespace kvdepot::planes {

inline constexpr float kDeviationMin = 1e-12f;
inline constexpr float kTokenRmsMin = 1e-6f;
// Smallest positive fp16: a stored scale is never 0 where its channel has bits.
inline constexpr uint16_t kStoredScaleMinFp16 = 1;
// Smallest normal fp16; a head whose largest stored scale lies below it is stored as raw.
inline constexpr float kStoredScaleNormalMin = 6.103515625e-5f;
inline constexpr uint32_t kFp16ExponentMask = 0x7C00u;

// The clip of a width in standard deviations, divided by 8: stored scale = ClipEighth(w) *
// deviation.
KVDEPOT_HOST_DEVICE constexpr float ClipEighth(int width) {
  return width == 1 ? 1.6f / 8 : width == 2 ? 2.0f / 8 : width == 3 ? 2.4f / 8 : 2.9f / 8;
}
KVDEPOT_HOST_DEVICE constexpr float HalfLevels(int width) {
  return static_cast<float>((1 << width) - 1) * 0.5f;
}
KVDEPOT_HOST_DEVICE constexpr float LevelMax(int width) {
  return static_cast<float>((1 << width) - 1);
}
// A step of the quantiser is its stored scale times this.
KVDEPOT_HOST_DEVICE constexpr float StepFactor(int width) {
  return static_cast<float>(1 << (4 - width));
}
// HalfLevels for a left-aligned code: (code << (4 - width)) runs from 0 to twice this.
KVDEPOT_HOST_DEVICE constexpr float HalfAligned(int width) {
  return HalfLevels(width) * StepFactor(width);
}

// Token scales, 8 bits: a positive float rounded to 3 bits of mantissa, exponent and mantissa in
// one integer ...
KVDEPOT_HOST_DEVICE inline uint32_t RoundedTokenScale(float rms) {
  const uint32_t bits = FloatBits(rms);
  return (bits + 0x7FFFFu + ((bits >> 20) & 1u)) >> 20;
}
// ... and its code relative to the largest one of the segment, whose exponent becomes that of 1.
KVDEPOT_HOST_DEVICE inline uint8_t TokenScaleCode(uint32_t rounded, uint32_t largest_rounded) {
  const int32_t code =
      static_cast<int32_t>(rounded) - static_cast<int32_t>((largest_rounded >> 3) << 3) + 248;
  return static_cast<uint8_t>(code < 0 ? 0 : code);
}
KVDEPOT_HOST_DEVICE inline float TokenScaleValue(uint8_t code) {
  return FloatFromBits((static_cast<uint32_t>(code) << 20) + (96u << 23));
}

// The code of a value, as its float's low bits: adding 2^23 rounds to an integer, half to even.
inline constexpr float kRounder = 8388608.0f;
inline constexpr uint32_t kRounderBits = 0x4B000000u;
KVDEPOT_HOST_DEVICE inline uint32_t RoundedCode(float x, float centre,
                                                const Reciprocal& token_scale,
                                                const Reciprocal& step, float half_levels,
                                                float level_max) {
  const float z = Divide(x - centre, token_scale);
  const float level = Divide(z, step) + half_levels;
  return FloatBits(fminf(fmaxf(level, 0.0f), level_max) + kRounder);
}

// Back: the value of a left-aligned code, given as the float 1 + code / 16 (its bits: the code
// above those of 1). `middle` is CodeMiddle(width), `scale` 16 times the stored scale. All is exact
// but for the one rounding of the sum. A channel without bits: code 0, scale 0, any width's middle.
KVDEPOT_HOST_DEVICE constexpr float CodeMiddle(int width) { return 1.0f + HalfAligned(width) / 16; }
KVDEPOT_HOST_DEVICE inline float DecodedValue(float code, float middle, float scale,
                                              float token_scale, float centre) {
  return fmaf(token_scale, (code - middle) * scale, centre);
}

KVDEPOT_HOST_DEVICE inline bool IsFiniteFloat(float value) {
  return (FloatBits(value) & 0x7F800000u) != 0x7F800000u;
}
KVDEPOT_HOST_DEVICE inline bool IsFiniteFp16(uint16_t half) {
  return (half & kFp16ExponentMask) != kFp16ExponentMask;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_CODEC_H_
