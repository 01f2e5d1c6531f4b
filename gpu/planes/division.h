// Division by a number that divides often: one multiplication and one fused step in place of a
// division, the same quotient.
#ifndef KVDEPOT_GPU_PLANES_DIVISION_H_
#define KVDEPOT_GPU_PLANES_DIVISION_H_

#include <cmath>

#include "gpu/host_device.h"

namespace kvdepot::planes {

// 1 / divisor as the unevaluated sum of two floats.
struct Reciprocal {
  float high;
  float low;
};

// `divisor` has at most 11 bits of mantissa (token scales have 4, quantiser steps are fp16 values
// times a power of two) and lies in 2^-60 .. 2^60.
KVDEPOT_HOST_DEVICE inline Reciprocal ReciprocalOf(float divisor) {
  const float high = 1.0f / divisor;
  return {high, fmaf(-divisor, high, 1.0f) * high};
}

// x / divisor, correctly rounded wherever 2^-100 <= |x / divisor| < 2^100. What is smaller stays
// smaller, and no step of the codec tells such quotients from 0: their squares are 0, and added to
// half levels they are lost. What is larger becomes that large or infinite, of either sign: its
// square is infinite, and the segment becomes raw.
//
// Why: high + low differs from 1 / divisor by less than 2^-46 of it, so the sum before its one
// rounding differs from the quotient by less than 2^-22 units of its last place. A point halfway
// between two floats is M / 2 units with an odd M of 25 bits; the divisor, an integer of 11 bits
// but for a power of two, times M cannot be x times a power of two, since divisor * M has at most
// 10 trailing zeros and x would need 11 more than it has. So the quotient is at least 2^-12 units
// away from every such point, and both round alike.
KVDEPOT_HOST_DEVICE inline float Divide(float x, const Reciprocal& divisor) {
  return fmaf(x, divisor.high, x * divisor.low);
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_DIVISION_H_
