// Maps a region of any kind: the one place that knows which kinds are compiled in.
#ifndef KVDEPOT_GPU_MAP_REGION_H_
#define KVDEPOT_GPU_MAP_REGION_H_

#include <memory>

#include "absl/status/statusor.h"
#include "gpu/ipc_region.h"

namespace kvdepot {

// Errors as MapSharedMemory or MapDeviceRegion. UNIMPLEMENTED: a GPU's region in a build without
// CUDA, or of a kind that is not known.
absl::StatusOr<std::unique_ptr<MappedRegion>> MapRegion(const IpcRegion& region,
                                                        RegionAccess access);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_MAP_REGION_H_
