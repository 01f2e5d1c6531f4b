// Online softmax over one row's scores. Highway: included once a target.
#if defined(KVDEPOT_GPU_SOFTMAX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVDEPOT_GPU_SOFTMAX_INL_H_
#undef KVDEPOT_GPU_SOFTMAX_INL_H_
#else
#define KVDEPOT_GPU_SOFTMAX_INL_H_
#endif

#include <cmath>
#include <limits>

#include "gpu/softmax_state.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvdepot {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct WeightSums {
  float factor = 1;  // brings what the row accumulated so far to the new maximum; 1: nothing to do
  float added = 0;   // sum of the new weights
};

// Scores [0, count) of one row become weights exp(s - max) with the row's new maximum, and `state`
// that of the union. Scores outside [visible_begin, visible_end) become weight 0. `count` is a
// multiple of the vector length. A visible score that is not finite and above -infinity makes the
// state's sum NaN, for good: a comparison or an exponential alone would drop the token instead.
inline WeightSums ScoresToWeights(float* HWY_RESTRICT scores, int count, int visible_begin,
                                  int visible_end, float soft_cap, SoftmaxState& state) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const float infinity = std::numeric_limits<float>::infinity();
  for (int t = 0; t < visible_begin; ++t) scores[t] = -infinity;
  for (int t = visible_end; t < count; ++t) scores[t] = -infinity;
  if (soft_cap > 0) {
    const auto cap = hn::Set(d, soft_cap);
    const auto inverse = hn::Set(d, 1 / soft_cap);
    for (int t = 0; t < count; t += lanes) {
      const auto s = hn::LoadU(d, scores + t);
      const auto capped = hn::Mul(cap, hn::Tanh(d, hn::Mul(s, inverse)));
      hn::StoreU(hn::IfThenElse(hn::Eq(s, hn::Set(d, -infinity)), s, capped), d, scores + t);
    }
  }

  auto largest = hn::Set(d, state.max);
  auto bounded = hn::Lt(hn::LoadU(d, scores), hn::Set(d, infinity));
  for (int t = 0; t < count; t += lanes) {
    const auto s = hn::LoadU(d, scores + t);
    largest = hn::Max(largest, s);
    bounded = hn::And(bounded, hn::Lt(s, hn::Set(d, infinity)));
  }
  if (!hn::AllTrue(d, bounded)) {
    state.sum = std::numeric_limits<float>::quiet_NaN();
    for (int t = 0; t < count; ++t) scores[t] = 0;
    return {};
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  if (max == -infinity) {
    for (int t = 0; t < count; ++t) scores[t] = 0;
    return {};
  }
  auto sum = hn::Zero(d);
  const auto max_v = hn::Set(d, max);
  for (int t = 0; t < count; t += lanes) {
    const auto weight = hn::Exp(d, hn::Sub(hn::LoadU(d, scores + t), max_v));
    hn::StoreU(weight, d, scores + t);
    sum = hn::Add(sum, weight);
  }
  WeightSums sums;
  sums.added = hn::GetLane(hn::SumOfLanes(d, sum));
  if (state.sum != 0) sums.factor = std::exp(state.max - max);
  state.sum = state.sum * sums.factor + sums.added;
  state.max = max;
  return sums;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot
HWY_AFTER_NAMESPACE();

#endif  // include guard
