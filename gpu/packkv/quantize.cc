#include "gpu/packkv/quantize.h"

#include <algorithm>

#include "gpu/check.h"
#include "gpu/packkv/step.h"

namespace kvdepot::packkv {

QuantizedBlock Quantize(absl::Span<const float> values, float relative_scale) {
  KVDEPOT_CHECK(values.size() % kBlockTokens == 0);
  QuantizedBlock block;
  block.row_values = values.size() / kBlockTokens;
  block.codes.resize(values.size());
  for (size_t token = 0; token < kBlockTokens; ++token) {
    const absl::Span<const float> row = values.subspan(token * block.row_values, block.row_values);
    const auto [least, most] = std::minmax_element(row.begin(), row.end());
    if (!IsInRange(*least, *most)) {
      block.in_range = false;
      return block;
    }
    block.scale[token] = ScaleOf(*least, *most, relative_scale);
    const float step = Bf16ToFloat(block.scale[token]);
    const int zero = StepsOf(*least, step);
    block.zero[token] = static_cast<int16_t>(zero);
    uint8_t* const codes = block.codes.data() + token * block.row_values;
    for (size_t i = 0; i < row.size(); ++i) {
      codes[i] = static_cast<uint8_t>(StepsOf(row[i], step) - zero);
    }
  }
  return block;
}

int CodeBitsMax(float relative_scale) {
  // Largest and smallest value may each be rounded away from the other, and the step is bf16.
  const int codes = static_cast<int>(1 / relative_scale * (1 + 1.0f / 128)) + 2;
  return std::min(8, 32 - __builtin_clz(static_cast<unsigned>(codes)));
}

}  // namespace kvdepot::packkv
