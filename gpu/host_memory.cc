#include "gpu/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>

namespace kvdepot {

uint64_t HostMemoryBytes() {
  const auto physical = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                        static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  // In a container this is the container's own group. "max" is no number and leaves the limit out.
  std::ifstream file("/sys/fs/cgroup/memory.max");
  uint64_t limit = 0;
  return file >> limit ? std::min(physical, limit) : physical;
}

}  // namespace kvdepot
