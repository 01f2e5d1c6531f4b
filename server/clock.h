// The time, injectable, so that tests move it by hand.
#ifndef KVDEPOT_SERVER_CLOCK_H_
#define KVDEPOT_SERVER_CLOCK_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace kvdepot {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
};

class RealClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CLOCK_H_
