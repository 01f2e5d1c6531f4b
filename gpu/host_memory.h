// How much memory this process may count on.
#ifndef KVDEPOT_GPU_HOST_MEMORY_H_
#define KVDEPOT_GPU_HOST_MEMORY_H_

#include <cstdint>

namespace kvdepot {

// The machine's, or its control group's limit if that is lower: in a container the machine's figure
// would invite the kernel's killer.
uint64_t HostMemoryBytes();

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_HOST_MEMORY_H_
