// The one lossy step of `packkv`: the values of a token, of all KV heads, as multiples of a step.
#ifndef KVDEPOT_GPU_PACKKV_QUANTIZE_H_
#define KVDEPOT_GPU_PACKKV_QUANTIZE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {

// K or V of one block.
struct QuantizedBlock {
  // Of a token: kv_heads * head_dim.
  size_t row_values = 0;
  std::vector<uint8_t> codes;                     // [token][kv_head][channel]
  std::array<uint16_t, kBlockTokens> scale = {};  // bf16
  std::array<int16_t, kBlockTokens> zero = {};
  // False: values leave the range in which this represents them; nothing else means anything.
  bool in_range = true;

  const uint8_t* row(int token) const {
    return codes.data() + static_cast<size_t>(token) * row_values;
  }
  // What the code of that index stands for.
  float Value(int token, size_t index) const {
    const size_t t = static_cast<size_t>(token);
    return static_cast<float>(row(token)[index] + zero[t]) * Bf16ToFloat(scale[t]);
  }
};

// `values` are kBlockTokens rows, finite; `relative_scale` is valid (options.h). The step of a
// token is that part of the distance of its largest and its smallest value, rounded to bf16, but no
// less than 1/32000 of the largest magnitude, so that the zero point fits 16 bits, and than 2^-126,
// below which bf16 loses digits; a value x becomes round(x / step), half to even.
QuantizedBlock Quantize(absl::Span<const float> values, float relative_scale);

// No code needs more bits.
int CodeBitsMax(float relative_scale);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_QUANTIZE_H_
