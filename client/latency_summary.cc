#include "client/latency_summary.h"

#include <algorithm>
#include <cstddef>

namespace kvdepot {

LatencySummary Summarize(std::vector<absl::Duration> latencies) {
  std::sort(latencies.begin(), latencies.end());
  const auto percentile = [&](size_t percent) {
    return latencies[(latencies.size() * percent + 99) / 100 - 1];
  };
  absl::Duration sum;
  for (const absl::Duration latency : latencies) sum += latency;
  return {percentile(50), percentile(99), sum / static_cast<double>(latencies.size())};
}

}  // namespace kvdepot
