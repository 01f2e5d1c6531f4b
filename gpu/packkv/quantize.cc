#include "gpu/packkv/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gpu/check.h"

namespace kvdepot::packkv {
namespace {

constexpr float kMagnitudeStep = 1.0f / 32000;
// Below this bf16 loses digits, and a code could have more than 8 bits.
constexpr float kStepMin = std::numeric_limits<float>::min();
// The decoded value may be a step larger than the largest.
constexpr float kMagnitudeMax = std::numeric_limits<float>::max() / 4;

// Of half the values each to the other half, until one is left: the same order everywhere.
float TreeSumOfSquares(absl::Span<const float> row) {
  float sums[kHeadDimMax];
  size_t half = row.size();
  for (size_t i = 0; i < half; ++i) sums[i] = row[i] * row[i];
  while (half > 1) {
    half /= 2;
    for (size_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

float RangeOf(absl::Span<const float> row) {
  const auto [least, most] = std::minmax_element(row.begin(), row.end());
  return *most - *least;
}

// Never less than the range that such a root can go with: it would be where squares underflow.
float RootMeanSquareOf(absl::Span<const float> row) {
  const float values = static_cast<float>(row.size());
  return std::max(std::sqrt(TreeSumOfSquares(row) / values), RangeOf(row) / std::sqrt(2 * values));
}

// `set_values` of a row share a step, `relative_scale` of what `extent_of` says of them.
QuantizedBlock QuantizeSets(absl::Span<const float> values, size_t set_values, float relative_scale,
                            float (*extent_of)(absl::Span<const float>)) {
  KVDEPOT_CHECK(values.size() % (kBlockTokens * set_values) == 0);
  QuantizedBlock block;
  block.row_values = values.size() / kBlockTokens;
  block.codes.resize(values.size());
  block.steps.resize(block.row_values / set_values);
  for (size_t at = 0; at < values.size(); at += set_values) {
    const absl::Span<const float> row = values.subspan(at, set_values);
    const auto [least, most] = std::minmax_element(row.begin(), row.end());
    const float magnitude = std::max(std::fabs(*least), std::fabs(*most));
    const float extent = extent_of(row);
    if (magnitude > kMagnitudeMax || !std::isfinite(extent)) {
      block.in_range = false;
      return block;
    }
    const float wanted = std::max({extent * relative_scale, magnitude * kMagnitudeStep, kStepMin});
    Steps& steps = block.steps[at % block.row_values / set_values];
    const size_t token = at / block.row_values;
    steps.scale[token] = FloatToBf16(wanted);
    const float step = Bf16ToFloat(steps.scale[token]);
    const int zero = static_cast<int>(std::nearbyint(*least / step));
    steps.zero[token] = static_cast<int16_t>(zero);
    for (size_t i = 0; i < set_values; ++i) {
      block.codes[at + i] =
          static_cast<uint8_t>(static_cast<int>(std::nearbyint(row[i] / step)) - zero);
    }
  }
  return block;
}

}  // namespace

QuantizedBlock Quantize(absl::Span<const float> values, float relative_scale) {
  return QuantizeSets(values, values.size() / kBlockTokens, relative_scale, RangeOf);
}

QuantizedBlock QuantizeNormalized(absl::Span<const float> values, size_t head_dim,
                                  float relative_scale) {
  KVDEPOT_CHECK(head_dim <= kHeadDimMax);
  return QuantizeSets(values, head_dim, relative_scale, RootMeanSquareOf);
}

}  // namespace kvdepot::packkv
