#include "client/codec_bench/equal_error.h"

#include <algorithm>
#include <cmath>

namespace kvdepot {

absl::optional<SizeRatio> RatioAtError(const ErrorPoint& baseline, std::vector<ErrorPoint> curve) {
  std::sort(curve.begin(), curve.end(),
            [](const ErrorPoint& a, const ErrorPoint& b) { return a.bits < b.bits; });
  if (!curve.empty() && curve.front().error < baseline.error) {
    return SizeRatio{baseline.bits / curve.front().bits, true};
  }
  for (size_t i = 0; i < curve.size(); ++i) {
    const ErrorPoint& point = curve[i];
    if (point.error == baseline.error) return SizeRatio{baseline.bits / point.bits, false};
    if (point.error > baseline.error) continue;
    // The first one whose error is smaller; the one before has a larger one.
    const ErrorPoint& before = curve[i - 1];
    const double part = point.error > 0 ? std::log(before.error / baseline.error) /
                                              std::log(before.error / point.error)
                                        : 1;
    return SizeRatio{baseline.bits / (before.bits + part * (point.bits - before.bits)), false};
  }
  return absl::nullopt;
}

std::vector<bool> NotBeaten(const std::vector<ErrorPoint>& points) {
  std::vector<bool> result;
  result.reserve(points.size());
  for (const ErrorPoint& point : points) {
    result.push_back(std::none_of(points.begin(), points.end(), [&](const ErrorPoint& other) {
      return other.bits <= point.bits && other.error <= point.error &&
             (other.bits < point.bits || other.error < point.error);
    }));
  }
  return result;
}

}  // namespace kvdepot
