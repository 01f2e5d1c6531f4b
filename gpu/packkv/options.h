// What a session that is stored by `packkv` chooses (PackKV, arXiv 2512.24449).
#ifndef KVDEPOT_GPU_PACKKV_OPTIONS_H_
#define KVDEPOT_GPU_PACKKV_OPTIONS_H_

#include <cstdint>

#include "absl/status/status.h"

namespace kvdepot::packkv {

// In which order a block's tokens are packed. The numbers are those of gpu/FORMAT.md.
enum class Repacking : uint8_t {
  kNone = 1,
  kMedian = 2,  // by the median of a token's codes of V
  kGreedy = 3,  // packs grown token by token
};

struct Options {
  // Quantiser step of a token's K and V, as a part of the range of its values in all heads:
  // kRelativeScaleMin .. 1. With `normalize` the step is one of a token and head, as a part of the
  // root mean square of its normalised values: kNormalizedScaleMin .. kNormalizedScaleMax.
  float k_relative_scale = 0.1f;
  float v_relative_scale = 0.2f;
  // Tokens that share a minimum and a width in each channel: 4, 8 or 16.
  int pack_tokens = 16;
  Repacking repacking = Repacking::kNone;
  // Channels are centred and scaled first, segment by segment (normalize.h).
  bool normalize = false;
};

// What is not asked for.
inline Options DefaultOptions(bool normalize) {
  Options options;
  options.normalize = normalize;
  if (normalize) options.k_relative_scale = options.v_relative_scale = 0.8f;
  return options;
}

inline constexpr char kPackTokensRange[] = "4, 8 or 16";

// Codes of a finer step need more than 8 bits.
inline constexpr float kRelativeScaleMin = 0.004f;
inline constexpr float kNormalizedScaleMin = 0.1f;
inline constexpr float kNormalizedScaleMax = 2;

// INVALID_ARGUMENT naming the field, its value and what is allowed.
absl::Status Validate(const Options& options);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_OPTIONS_H_
