// What is said of many measured durations.
#ifndef KVDEPOT_CLIENT_LATENCY_SUMMARY_H_
#define KVDEPOT_CLIENT_LATENCY_SUMMARY_H_

#include <vector>

#include "absl/time/time.h"

namespace kvdepot {

struct LatencySummary {
  absl::Duration p50;
  absl::Duration p99;
  absl::Duration mean;
};

// The p-th percentile is the smallest value that at least p percent of all values do not exceed.
// Not empty.
LatencySummary Summarize(std::vector<absl::Duration> latencies);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_LATENCY_SUMMARY_H_
