// Partial attention of one query row over a subset of tokens, and how two of them become one.
//
// For tokens t with logits s_t (natural units) and values v_t: max = max s_t, sum = sum exp(s_t -
// max), and beside the state an array output[c] = sum exp(s_t - max) v_t[c]. The empty set is max =
// -infinity, sum = 0, output = 0. Merging is associative up to rounding; callers merge in index
// order so that results repeat bit for bit.
#ifndef KVDEPOT_GPU_SOFTMAX_STATE_H_
#define KVDEPOT_GPU_SOFTMAX_STATE_H_

#include <cmath>
#include <limits>

#include "gpu/host_device.h"

namespace kvdepot {

struct SoftmaxState {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

// Factors that bring the outputs of `a` and `b` to the merged maximum.
struct MergeFactors {
  float a = 1;
  float b = 1;
};

// Makes `a` the state of the union and returns the factors for the two outputs.
KVDEPOT_HOST_DEVICE inline MergeFactors MergeInto(SoftmaxState& a, const SoftmaxState& b) {
  MergeFactors factors;
  if (b.sum == 0) {
    factors.b = 0;
  } else if (a.sum == 0) {
    factors.a = 0;
    a = b;
  } else {
    const float max = a.max > b.max ? a.max : b.max;
    factors.a = expf(a.max - max);
    factors.b = expf(b.max - max);
    a.sum = a.sum * factors.a + b.sum * factors.b;
    a.max = max;
  }
  return factors;
}

// -infinity for the empty set.
KVDEPOT_HOST_DEVICE inline float LogSumExp(const SoftmaxState& state) {
  return state.sum == 0 ? -INFINITY : state.max + logf(state.sum);
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SOFTMAX_STATE_H_
