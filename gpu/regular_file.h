// Reading a file that an administrator names and may exchange while a daemon runs.
#ifndef KVDEPOT_GPU_REGULAR_FILE_H_
#define KVDEPOT_GPU_REGULAR_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace kvdepot {

// All of it. Symbolic links are followed. Never waits for a peer: what is no file (a folder, as a
// container runtime makes one where a mounted file is missing; a pipe) is refused, and so is more
// than `bytes_max`. NOT_FOUND or INVALID_ARGUMENT says the path and why.
absl::StatusOr<std::string> ReadRegularFile(const std::string& path, uint64_t bytes_max);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_REGULAR_FILE_H_
