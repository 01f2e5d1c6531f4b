// When a failed call is sent again, and after what delay: the decision alone, without clock, sleep
// or network.
//
// UNAVAILABLE is the one code that says "nothing is wrong with the call, try later". Two cases are
// told apart by RetryInfo:
//  - with it, a daemon answered and said when to come back (draining, another mutation in flight):
//  wait as told, up to
//    the deadline;
//  - without it, nobody answered. A daemon that restarts is back within a second or two and one
//  that does not run never
//    comes, so a few attempts with growing delays decide it and the caller learns soon.
// Whether a call *may* be sent again is the caller's knowledge: only idempotent ones come here.
#ifndef KVDEPOT_CLIENT_RETRY_H_
#define KVDEPOT_CLIENT_RETRY_H_

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"

namespace kvdepot {

// Attempts, the first included, while nobody answers.
inline constexpr int kUnansweredAttemptsMax = 5;
inline constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
// A daemon that asks for more is asked again after this.
inline constexpr absl::Duration kRetryDelayMax = absl::Seconds(5);
// Floor of the daemon's wish, so that a RetryInfo of zero is no busy loop.
inline constexpr absl::Duration kRetryDelayMin = absl::Milliseconds(1);

// The attempts of one call. Not thread-safe: a local variable of that call.
class Retry {
 public:
  explicit Retry(absl::Time deadline) : deadline_(deadline) {}

  // Called after each failed attempt. Empty: give `status` to the caller.
  absl::optional<absl::Duration> DelayAfter(const absl::Status& status, absl::Time now);

 private:
  absl::Time deadline_;
  int unanswered_attempts_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_RETRY_H_
