// Where memory that a caller names lies.
#ifndef KVDEPOT_GPU_MEMORY_SPACE_H_
#define KVDEPOT_GPU_MEMORY_SPACE_H_

#include <cstdint>

namespace kvdepot {

enum class MemorySpace : uint8_t {
  kHost,
  // The backend's device, aligned to 16 bytes: what another process has shown (map_region.h). Its
  // values may change at any time. On the CPU the same as host memory.
  kDevice,
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_MEMORY_SPACE_H_
