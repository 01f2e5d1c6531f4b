#include "client/retry.h"

#include <algorithm>

#include "absl/random/random.h"
#include "client/grpc_status.h"

namespace kvdepot {

absl::optional<absl::Duration> Retry::DelayAfter(const absl::Status& status, absl::Time now) {
  if (!absl::IsUnavailable(status)) return absl::nullopt;
  absl::Duration delay;
  if (const absl::optional<absl::Duration> asked = RetryDelay(status)) {
    delay = std::clamp(*asked, kRetryDelayMin, kRetryDelayMax);
  } else {
    if (++unanswered_attempts_ == kUnansweredAttemptsMax) return absl::nullopt;
    delay = kFirstBackoff * (1 << unanswered_attempts_) / 2;
  }
  // Clients that were refused in the same moment must not come back in the same moment.
  absl::InsecureBitGen random;
  delay *= absl::Uniform(random, 1.0, 1.25);
  if (now + delay >= deadline_) return absl::nullopt;
  return delay;
}

}  // namespace kvdepot
