// Slabs of the CPU backend: memory that other processes can map, without a name and without a limit
// of /dev/shm (memfd).
#ifndef KVDEPOT_GPU_SHARED_MEMORY_H_
#define KVDEPOT_GPU_SHARED_MEMORY_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "gpu/extent.h"
#include "gpu/file_descriptor.h"
#include "gpu/ipc_region.h"
#include "gpu/slab_pool.h"

namespace kvdepot {

// Zeros. The kernel provides pages as they are first written. Nobody can change its size, and of a
// slab for sealed extents nobody but this process ever has a writable mapping: the kernel refuses
// it, whoever holds the descriptor. RESOURCE_EXHAUSTED naming device_memory.
absl::StatusOr<std::unique_ptr<SlabMemory>> MakeSharedMemory(size_t size_bytes, ExtentUse use);

// Maps a region of kind kSharedMemory. FAILED_PRECONDITION: it has another size, or one that its
// owner could still shrink under a reader; PERMISSION_DENIED: it is for reading only.
absl::StatusOr<std::unique_ptr<MappedRegion>> MapSharedMemory(const IpcRegion& region,
                                                              RegionAccess access);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SHARED_MEMORY_H_
