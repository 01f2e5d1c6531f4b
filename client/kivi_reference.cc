#include "client/kivi_reference.h"

#include <algorithm>
#include <cmath>

#include "gpu/numeric.h"

namespace kvdepot {
namespace {

float RoundToFp16(float value) { return Fp16ToFloat(FloatToFp16(value)); }

// `count` values, `stride` apart, to levels 0..level_max.
void QuantizeGroup(float level_max, float* values, int count, size_t stride) {
  float low = values[0];
  float high = values[0];
  for (int i = 1; i < count; ++i) {
    low = std::min(low, values[i * stride]);
    high = std::max(high, values[i * stride]);
  }
  const float zero = RoundToFp16(low);
  const float scale = RoundToFp16((high - low) / level_max);
  for (int i = 0; i < count; ++i) {
    float& value = values[i * stride];
    const float level =
        scale > 0 ? std::clamp(std::nearbyint((value - zero) / scale), 0.0f, level_max) : 0.0f;
    value = zero + scale * level;
  }
}

}  // namespace

void QuantizeLikeKivi(int first, int last, int bits, KvArrays* kv) {
  const float level_max = static_cast<float>((1 << bits) - 1);
  const size_t token_stride = kv->At(1, 0);
  for (int token = first; token < last; token += kKiviGroup) {
    const int count = std::min(kKiviGroup, last - token);
    for (size_t channel = 0; channel < token_stride; ++channel) {
      QuantizeGroup(level_max, &kv->k[kv->At(token, 0) + channel], count, token_stride);
    }
  }
  for (int token = first; token < last; ++token) {
    for (int head = 0; head < kv->kv_heads; ++head) {
      for (int channel = 0; channel < kv->head_dim; channel += kKiviGroup) {
        const int count = std::min(kKiviGroup, kv->head_dim - channel);
        QuantizeGroup(level_max, &kv->v[kv->At(token, head) + channel], count, 1);
      }
    }
  }
}

}  // namespace kvdepot
