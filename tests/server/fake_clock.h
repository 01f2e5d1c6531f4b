// A clock that stands still until it is moved.
#ifndef KVDEPOT_TESTS_SERVER_FAKE_CLOCK_H_
#define KVDEPOT_TESTS_SERVER_FAKE_CLOCK_H_

#include "absl/time/time.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace kvdepot {

class FakeClock final : public Clock {
 public:
  absl::Time Now() override {
    MutexLock lock(mu_);
    return now_;
  }
  void Advance(absl::Duration duration) {
    MutexLock lock(mu_);
    now_ += duration;
  }

 private:
  Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::FromUnixSeconds(1800000000);
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_FAKE_CLOCK_H_
