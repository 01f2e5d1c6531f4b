// The one lossy step of `packkv`: the values that share a step, as multiples of it.
#ifndef KVDEPOT_GPU_PACKKV_QUANTIZE_H_
#define KVDEPOT_GPU_PACKKV_QUANTIZE_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {

// Steps and zero points of a block's tokens, of the values that share them: those of all heads, or
// of one.
struct Steps {
  std::array<uint16_t, kBlockTokens> scale = {};  // bf16
  std::array<int16_t, kBlockTokens> zero = {};
};

// K or V of one block.
struct QuantizedBlock {
  // Of a token: kv_heads * head_dim.
  size_t row_values = 0;
  std::vector<uint8_t> codes;  // [token][kv_head][channel]
  // One for all heads, or one a head.
  std::vector<Steps> steps;
  // False: values leave the range in which this represents them; nothing else means anything.
  bool in_range = true;

  const uint8_t* row(int token) const {
    return codes.data() + static_cast<size_t>(token) * row_values;
  }
};

// `values` are kBlockTokens rows, finite; `relative_scale` is valid (options.h). All values of a
// token share a step: that part of the distance of its largest and its smallest value, rounded to
// bf16, but no less than 1/32000 of the largest magnitude, so that the zero point fits 16 bits, and
// than 2^-126, below which bf16 loses digits; a value x becomes round(x / step), half to even.
QuantizedBlock Quantize(absl::Span<const float> values, float relative_scale);

// The same of normalised values (normalize.h), which may be infinite. The values of a token and
// head, `head_dim` of them, share a step: that part of their root mean square, with the same least,
// so that codes are at most sqrt(2 head_dim) / relative_scale and rounding.
QuantizedBlock QuantizeNormalized(absl::Span<const float> values, size_t head_dim,
                                  float relative_scale);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_QUANTIZE_H_
