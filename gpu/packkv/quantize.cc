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

}  // namespace

QuantizedBlock Quantize(absl::Span<const float> values, float relative_scale) {
  KVDEPOT_CHECK(values.size() % kBlockTokens == 0);
  QuantizedBlock block;
  block.row_values = values.size() / kBlockTokens;
  block.codes.resize(values.size());
  for (size_t token = 0; token < kBlockTokens; ++token) {
    const absl::Span<const float> row = values.subspan(token * block.row_values, block.row_values);
    const auto [least, most] = std::minmax_element(row.begin(), row.end());
    const float magnitude = std::max(std::fabs(*least), std::fabs(*most));
    if (magnitude > kMagnitudeMax) {
      block.in_range = false;
      return block;
    }
    const float wanted =
        std::max({(*most - *least) * relative_scale, magnitude * kMagnitudeStep, kStepMin});
    block.scale[token] = FloatToBf16(wanted);
    const float step = Bf16ToFloat(block.scale[token]);
    const int zero = static_cast<int>(std::nearbyint(*least / step));
    block.zero[token] = static_cast<int16_t>(zero);
    uint8_t* const codes = block.codes.data() + token * block.row_values;
    for (size_t i = 0; i < row.size(); ++i) {
      codes[i] = static_cast<uint8_t>(static_cast<int>(std::nearbyint(row[i] / step)) - zero);
    }
  }
  return block;
}

}  // namespace kvdepot::packkv
