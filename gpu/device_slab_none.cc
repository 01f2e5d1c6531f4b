// Stands for device_slab.cc where no CUDA toolkit was found: such a daemon makes no device slabs.
#include "absl/strings/str_cat.h"
#include "gpu/device_slab.h"

namespace kvdepot {

absl::StatusOr<std::unique_ptr<MappedRegion>> MapDeviceRegion(const IpcRegion& region,
                                                              RegionAccess /*access*/) {
  return absl::UnimplementedError(
      absl::StrCat("region.device: ", region.device, ", this client was built without CUDA"));
}

absl::StatusOr<ExportedMemory> ExportDeviceMemory(const void* /*data*/, size_t /*size_bytes*/) {
  return absl::UnimplementedError("memory: this client was built without CUDA");
}

}  // namespace kvdepot
