#include "gpu/map_region.h"

#include "absl/strings/str_cat.h"
#include "gpu/device_slab.h"
#include "gpu/shared_memory.h"

namespace kvdepot {

absl::StatusOr<std::unique_ptr<MappedRegion>> MapRegion(const IpcRegion& region,
                                                        RegionAccess access) {
  switch (region.kind) {
    case RegionKind::kSharedMemory:
      return MapSharedMemory(region, access);
    case RegionKind::kCudaMemory:
    case RegionKind::kCudaIpc:
      return MapDeviceRegion(region, access);
  }
  return absl::UnimplementedError(absl::StrCat("region.kind: ", static_cast<int>(region.kind),
                                               ", is none that this client knows"));
}

}  // namespace kvdepot
