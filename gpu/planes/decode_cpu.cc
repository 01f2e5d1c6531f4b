#include "gpu/planes/decode_cpu.h"

#include "gpu/planes/codec.h"
#include "gpu/planes/pack.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

void DecodeBlock(const TensorView& tensor, const uint8_t* order, int block, float* values,
                 size_t row_stride) {
  uint8_t codes[kHeadDimMax][kBlockTokens];
  UnpackBlock(tensor.pattern, tensor.is_key, tensor.planes(block), codes);
  float token_scale[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t)
    token_scale[t] = TokenScaleValue(tensor.token_scale_code(block, t));

  for (int place = 0; place < tensor.head_dim(); ++place) {
    const int width = tensor.pattern.width[place / kGroupChannels];
    const float centre = Fp16ToFloat(tensor.centre(place));
    float* channel = values + order[place];
    if (width == 0) {
      for (size_t t = 0; t < kBlockTokens; ++t) channel[t * row_stride] = centre;
      continue;
    }
    const float step = Fp16ToFloat(tensor.stored_scale(place)) * StepFactor(width);
    const float half = HalfLevels(width);
    for (size_t t = 0; t < kBlockTokens; ++t) {
      // Both products are exact; only the addition rounds.
      channel[t * row_stride] =
          centre + token_scale[t] * step * (static_cast<float>(codes[place][t]) - half);
    }
  }
}

}  // namespace kvdepot::planes
