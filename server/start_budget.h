// How much memory the daemon takes on where its device has less free than it was told to use: the
// clients of a daemon that has ended keep its slabs until they unmap them or end themselves.
#ifndef KVDEPOT_SERVER_START_BUDGET_H_
#define KVDEPOT_SERVER_START_BUDGET_H_

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/clock.h"
#include "server/options.h"

namespace kvdepot {

// What the waiting needs of the world.
struct StartMemory {
  // Backend::memory_bytes: what is free, as long as no session is there.
  std::function<uint64_t()> free_bytes;
  // Lets time pass. False: the daemon is asked to end.
  std::function<bool(absl::Duration)> pause;
  // Less than wanted is free. Called once, before any waiting.
  std::function<void(uint64_t wanted_bytes, uint64_t free_bytes)> on_short;
};

// The budget in bytes: options.memory_budget, for which this waits up to memory_wait_timeout, or
// what is free by then. RESOURCE_EXHAUSTED naming memory_budget_bytes_min: that is less. CANCELLED:
// `pause` said so.
absl::StatusOr<uint64_t> BudgetAtStart(const Options& options, Clock* clock,
                                       const StartMemory& memory);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_START_BUDGET_H_
