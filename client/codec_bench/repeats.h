// Times a piece of work often enough for a median, and not for longer than a person waits.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_REPEATS_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_REPEATS_H_

#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvdepot {

inline constexpr int kRepeatsMax = 7;
inline constexpr absl::Duration kRepeatsTime = absl::Seconds(1);

// Seconds of each repeat, at least one; none starts when kRepeatsTime is over.
template <class Work>
std::vector<double> SecondsOf(const Work& work) {
  std::vector<double> seconds;
  const absl::Time begin = absl::Now();
  while (static_cast<int>(seconds.size()) < kRepeatsMax &&
         (seconds.empty() || absl::Now() - begin < kRepeatsTime)) {
    const absl::Time start = absl::Now();
    work();
    seconds.push_back(absl::ToDoubleSeconds(absl::Now() - start));
  }
  return seconds;
}

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_REPEATS_H_
