// A session's own calibration, made from its first sealed segment (gpu/FORMAT.md).
#ifndef KVDEPOT_GPU_PLANES_OWN_CALIBRATION_H_
#define KVDEPOT_GPU_PLANES_OWN_CALIBRATION_H_

#include "absl/types/span.h"
#include "gpu/backend.h"
#include "gpu/calibration.h"

namespace kvdepot::planes {

// Mean payload of a profile in quarters of a bit.
constexpr int ProfileQuarterBits(Profile profile) {
  constexpr int kQuarterBits[kProfileCount] = {6, 8, 11, 14};
  return kQuarterBits[static_cast<int>(profile)];
}

// The pattern number next above a profile's mean, and next below.
int PatternAbove(int head_dim, Profile profile);
int PatternBelow(int head_dim, Profile profile);

// A calibration from the channels' variances, [kv_head][K, V][channel] (ChannelVariance of
// encode_cpu.h), and the query second moments, [kv_head][channel] or empty.
LayerCalibration CalibrationOf(const LayerShape& shape, Profile profile,
                               absl::Span<const float> variance,
                               absl::Span<const float> query_second_moments);

// As Backend::DeriveCalibration.
LayerCalibration DeriveCalibration(const SealBlocks& source, Profile profile,
                                   absl::Span<const float> query_second_moments);

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_OWN_CALIBRATION_H_
