// The arithmetic of the quantiser, the same on host and device: single fp32 steps, each correctly
// rounded. Whoever calls it is compiled without contraction.
#ifndef KVDEPOT_GPU_PACKKV_STEP_H_
#define KVDEPOT_GPU_PACKKV_STEP_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "gpu/host_device.h"
#include "gpu/numeric.h"

namespace kvdepot::packkv {

inline constexpr float kMagnitudeStep = 1.0f / 32000;
// Below this bf16 loses digits, and a code could have more than 8 bits.
inline constexpr float kStepMin = std::numeric_limits<float>::min();
// The decoded value may be a step larger than the largest.
inline constexpr float kMagnitudeMax = std::numeric_limits<float>::max() / 4;

// Of a token's smallest and largest value. Infinite ones are not.
KVDEPOT_HOST_DEVICE inline bool IsInRange(float least, float most) {
  return fmaxf(fabsf(least), fabsf(most)) <= kMagnitudeMax;
}

// The step (bf16) of values that are `least` to `most`: a part of their `extent`.
KVDEPOT_HOST_DEVICE inline uint16_t ScaleOfExtent(float extent, float least, float most,
                                                  float relative_scale) {
  const float magnitude = fmaxf(fabsf(least), fabsf(most));
  const float wanted = fmaxf(extent * relative_scale, magnitude * kMagnitudeStep);
  return FloatToBf16(fmaxf(wanted, kStepMin));
}

// A token's step (bf16).
KVDEPOT_HOST_DEVICE inline uint16_t ScaleOf(float least, float most, float relative_scale) {
  return ScaleOfExtent(most - least, least, most, relative_scale);
}

// Of the smallest value it is the zero point; a code is that of its value less the zero point.
KVDEPOT_HOST_DEVICE inline int StepsOf(float value, float step) {
  return static_cast<int>(nearbyintf(value / step));
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_STEP_H_
