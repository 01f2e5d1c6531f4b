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

// Quantising counts levels in units of 2^width, so that all widths' lie in 0 .. 1: a step of the
// quantiser becomes 16 times the stored scale, whatever the width. Powers of two change no
// rounding.
KVDEPOT_HOST_DEVICE constexpr float FullStep(float stored_scale) { return 16 * stored_scale; }

// What else quantising needs of a width.
struct LevelConstants {
  float half_levels;
  float level_max;
  // Adding this rounds to a multiple of the unit, half to even, and leaves the code in the float's
  // low bits.
  float rounder;
};
KVDEPOT_HOST_DEVICE inline LevelConstants LevelConstantsOf(int width) {
  const float unit = 1.0f / static_cast<float>(1 << width);
  return {HalfLevels(width) * unit, LevelMax(width) * unit, 8388608.0f * unit};
}

// The code of a value, added to the bits of `rounder`. `step` is that of FullStep.
KVDEPOT_HOST_DEVICE inline uint32_t RoundedCode(float x, float centre,
                                                const Reciprocal& token_scale,
                                                const Reciprocal& step,
                                                const LevelConstants& levels) {
  const float z = Divide(x - centre, token_scale);
  const float level = Divide(z, step) + levels.half_levels;
#if defined(__CUDA_ARCH__)
  const float not_negative = __saturatef(level);  // part of the addition
#else
  const float not_negative = fminf(fmaxf(level, 0.0f), 1.0f);
#endif
  return FloatBits(fminf(not_negative, levels.level_max) + levels.rounder);
}

// Back: values of a channel from left-aligned codes. A code comes as the float 1 + code / 16 (its
// bits: the code above those of 1). All is exact but for the one rounding of the sum.
struct ChannelDecoder {
  float scale;
  float offset;
  float centre;

  // A channel without bits has code 0, and its products are -0, which leaves any centre as it is.
  KVDEPOT_HOST_DEVICE static ChannelDecoder Of(int width, float stored_scale, float centre) {
    if (width == 0) return {-0.0f, -0.0f, centre};
    const float scale = 16 * stored_scale;
    return {scale, -(1.0f + HalfAligned(width) / 16) * scale, centre};
  }
  KVDEPOT_HOST_DEVICE float Value(float code, float token_scale) const {
    return fmaf(token_scale, fmaf(code, scale, offset), centre);
  }
};

KVDEPOT_HOST_DEVICE inline bool IsFiniteFloat(float value) {
  return (FloatBits(value) & 0x7F800000u) != 0x7F800000u;
}
KVDEPOT_HOST_DEVICE inline bool IsFiniteFp16(uint16_t half) {
  return (half & kFp16ExponentMask) != kFp16ExponentMask;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_CODEC_H_
