// Amounts of memory as people write them.
#ifndef KVDEPOT_GPU_BYTE_COUNT_H_
#define KVDEPOT_GPU_BYTE_COUNT_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace kvdepot {

inline constexpr char kByteCountRange[] = "bytes (8GiB, 512MiB, 1073741824), at least 1";

// "1073741824", "512MiB", "8GiB", with KiB, MiB, GiB or TiB behind a whole number. None: anything
// else, 0, and what 64 bits cannot hold.
absl::optional<uint64_t> ParseByteCount(absl::string_view text);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_BYTE_COUNT_H_
