// Slabs of the CUDA backend, and how another process maps memory of a GPU: as a descriptor of the
// driver (default: the kernel counts who has it, equal process numbers in two containers do not
// matter, and a mapping can be for reading only), or as a handle of cudaIpc, where descriptors
// cannot go.
#ifndef KVDEPOT_GPU_DEVICE_SLAB_H_
#define KVDEPOT_GPU_DEVICE_SLAB_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "gpu/cuda_device.h"
#include "gpu/ipc_region.h"
#include "gpu/slab_pool.h"

namespace kvdepot {

// Zeros, because a slab may lie where another tenant's was, and a mapping shows the whole of it.
// `size_bytes` is a multiple of kSlabGranularityBytes; `kind` is kCudaMemory or kCudaIpc.
// RESOURCE_EXHAUSTED naming device_memory; INTERNAL: the device fails.
absl::StatusOr<std::unique_ptr<SlabMemory>> MakeDeviceSlab(const CudaDevice& device,
                                                           size_t size_bytes, RegionKind kind);

// Maps a region of either kind on its device. The calling thread's current device stays what it is.
// FAILED_PRECONDITION: the device is none that this process sees, the region was made by this very
// process (kCudaIpc), or the driver refuses it. No kernel uses the region when it is unmapped.
absl::StatusOr<std::unique_ptr<MappedRegion>> MapDeviceRegion(const IpcRegion& region,
                                                              RegionAccess access);

// Memory of this process from cudaMalloc, for another one to map.
struct ExportedMemory {
  // The whole allocation.
  IpcRegion region;
  // Where in it the memory begins.
  size_t offset = 0;
};

// FAILED_PRECONDITION: `data` and the next `size_bytes` are not of one allocation of cudaMalloc.
absl::StatusOr<ExportedMemory> ExportDeviceMemory(const void* data, size_t size_bytes);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DEVICE_SLAB_H_
