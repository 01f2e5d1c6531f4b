#include "gpu/planes/own_calibration.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "gpu/check.h"
#include "gpu/planes/encode_cpu.h"
#include "gpu/planes/pattern.h"
#include "xxhash.h"

namespace kvdepot::planes {
namespace {

// Width of a pattern in quarters of a bit, the same for K and V.
int QuarterBits(int head_dim, int number) {
  const Pattern pattern = KeyPattern(head_dim, number);
  return 4 * pattern.total() / pattern.groups;
}

std::vector<uint8_t> DescendingOrder(const float* importance, int head_dim) {
  std::vector<uint8_t> order(static_cast<size_t>(head_dim));
  std::iota(order.begin(), order.end(), static_cast<uint8_t>(0));
  std::stable_sort(order.begin(), order.end(),
                   [&](uint8_t a, uint8_t b) { return importance[a] > importance[b]; });
  return order;
}

std::array<uint8_t, 16> HashOf(const LayerCalibration& calibration) {
  std::vector<uint8_t> bytes;
  for (const HeadLayout& head : calibration.heads) {
    for (const TensorLayout* tensor : {&head.k, &head.v}) {
      bytes.insert(bytes.end(), tensor->order.begin(), tensor->order.end());
      bytes.push_back(tensor->pattern);
    }
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  std::array<uint8_t, 16> hash;
  memcpy(hash.data(), canonical.digest, hash.size());
  return hash;
}

}  // namespace

int PatternAbove(int head_dim, Profile profile) {
  int number = 0;
  while (QuarterBits(head_dim, number) <= ProfileQuarterBits(profile)) ++number;
  return number;
}

int PatternBelow(int head_dim, Profile profile) {
  int number = PatternCount(head_dim) - 1;
  while (QuarterBits(head_dim, number) >= ProfileQuarterBits(profile)) --number;
  return number;
}

LayerCalibration CalibrationOf(const LayerShape& shape, Profile profile,
                               absl::Span<const float> variance,
                               absl::Span<const float> query_second_moments) {
  const int head_dim = shape.head_dim;
  KVDEPOT_CHECK(variance.size() == 2 * shape.row_values());
  KVDEPOT_CHECK(query_second_moments.empty() || query_second_moments.size() == shape.row_values());
  LayerCalibration calibration;
  for (int head = 0; head < shape.kv_heads; ++head) {
    const float* k_variance = variance.data() + 2 * head * head_dim;
    float importance[kHeadDimMax];
    std::copy(k_variance, k_variance + head_dim, importance);
    if (!query_second_moments.empty()) {
      const float* q2 = query_second_moments.data() + head * head_dim;
      for (int c = 0; c < head_dim; ++c) importance[c] = importance[c] * q2[c];
    }
    HeadLayout layout;
    layout.k = {DescendingOrder(importance, head_dim),
                static_cast<uint8_t>(PatternAbove(head_dim, profile))};
    layout.v = {DescendingOrder(k_variance + head_dim, head_dim),
                static_cast<uint8_t>(PatternBelow(head_dim, profile))};
    calibration.heads.push_back(std::move(layout));
  }
  calibration.hash_prefix = HashOf(calibration);
  return calibration;
}

LayerCalibration DeriveCalibration(const SealBlocks& source, Profile profile,
                                   absl::Span<const float> query_second_moments) {
  std::vector<float> variance(2 * source.shape.row_values());
  float* tensor = variance.data();
  for (int head = 0; head < source.shape.kv_heads; ++head) {
    for (const bool is_key : {true, false}) {
      ChannelVariance(TensorBlocksOf(source, head, is_key), tensor);
      tensor += source.shape.head_dim;
    }
  }
  return CalibrationOf(source.shape, profile, variance, query_second_moments);
}

}  // namespace kvdepot::planes
