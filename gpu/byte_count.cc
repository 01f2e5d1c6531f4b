#include "gpu/byte_count.h"

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace kvdepot {
namespace {

struct Unit {
  absl::string_view suffix;
  int shift;
};
constexpr Unit kUnits[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};

}  // namespace

absl::optional<uint64_t> ParseByteCount(absl::string_view text) {
  int shift = 0;
  for (const Unit& unit : kUnits) {
    if (absl::ConsumeSuffix(&text, unit.suffix)) {
      shift = unit.shift;
      break;
    }
  }
  uint64_t count = 0;
  if (!absl::SimpleAtoi(text, &count) || count == 0 ||
      count > std::numeric_limits<uint64_t>::max() >> shift) {
    return absl::nullopt;
  }
  return count << shift;
}

}  // namespace kvdepot
