#include "server/start_budget.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

// Between two looks at what is free.
constexpr absl::Duration kPause = absl::Seconds(1);

}  // namespace

absl::StatusOr<uint64_t> BudgetAtStart(const Options& options, Clock* clock,
                                       const StartMemory& memory) {
  // A part of nothing is no budget.
  const uint64_t least = std::max<uint64_t>(options.memory_budget_bytes_min, 1);
  const absl::Time deadline = clock->Now() + options.memory_wait_timeout;
  for (bool told = false;; told = true) {
    const uint64_t free_bytes = memory.free_bytes();
    const uint64_t asked_bytes = options.memory_budget.Of(free_bytes);
    const uint64_t budget_bytes = std::min(asked_bytes, free_bytes);
    // A part of what is free is always there; what may be missing then is the least.
    const uint64_t wanted_bytes = std::max(asked_bytes, least);
    if (budget_bytes >= wanted_bytes) return budget_bytes;
    if (!told) memory.on_short(wanted_bytes, free_bytes);
    const absl::Duration left = deadline - clock->Now();
    if (left <= absl::ZeroDuration()) {
      if (budget_bytes >= least) return budget_bytes;
      return absl::ResourceExhaustedError(
          absl::StrCat("memory_budget_bytes_min: ", options.memory_budget_bytes_min,
                       " needed, memory_budget gives ", budget_bytes, " of ", free_bytes,
                       " that are free, after ", absl::FormatDuration(options.memory_wait_timeout),
                       " of memory_wait_timeout"));
    }
    if (!memory.pause(std::min(left, kPause))) {
      return absl::CancelledError("asked to end while waiting for memory");
    }
  }
}

}  // namespace kvdepot
