#include "gpu/packkv/quantize.h"

#include <algorithm>
#include <cmath>

#include "gpu/check.h"
#include "gpu/packkv/step.h"

namespace kvdepot::packkv {
namespace {

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
    const float extent = extent_of(row);
    if (!IsInRange(*least, *most) || !std::isfinite(extent)) {
      block.in_range = false;
      return block;
    }
    Steps& steps = block.steps[at % block.row_values / set_values];
    const size_t token = at / block.row_values;
    steps.scale[token] = ScaleOfExtent(extent, *least, *most, relative_scale);
    const float step = Bf16ToFloat(steps.scale[token]);
    const int zero = StepsOf(*least, step);
    steps.zero[token] = static_cast<int16_t>(zero);
    for (size_t i = 0; i < set_values; ++i) {
      block.codes[at + i] = static_cast<uint8_t>(StepsOf(row[i], step) - zero);
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

int CodeBitsMax(float relative_scale) {
  // Largest and smallest value may each be rounded away from the other, and the step is bf16.
  const int codes = static_cast<int>(1 / relative_scale * (1 + 1.0f / 128)) + 2;
  return std::min(8, 32 - __builtin_clz(static_cast<unsigned>(codes)));
}

}  // namespace kvdepot::packkv
