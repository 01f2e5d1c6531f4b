// What codecs take at the same error.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_EQUAL_ERROR_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_EQUAL_ERROR_H_

#include <vector>

#include "absl/types/optional.h"

namespace kvdepot {

struct ErrorPoint {
  double bits = 0;
  double error = 0;
};

// How many times smaller a codec is than something else at the same error.
struct SizeRatio {
  double ratio = 0;
  // The codec's error is smaller even at the fewest bits that it was measured at, so that it is
  // smaller by `ratio` or more.
  bool is_lower_bound = false;
};

// `curve` holds what the codec was measured at, in any order: between neighbours in bits, bits are
// linear in the error's logarithm. Where several bits give the same error the fewest count. None:
// the codec's error is larger wherever it was measured.
absl::optional<SizeRatio> RatioAtError(const ErrorPoint& baseline, std::vector<ErrorPoint> curve);

// For each point whether no other one has at most its bits and at most its error, and less of one.
std::vector<bool> NotBeaten(const std::vector<ErrorPoint>& points);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_EQUAL_ERROR_H_
