// Stands for fill_device_memory_cuda.cc where no CUDA toolkit was found: nothing lies on a device
// then.
#include "gpu/check.h"
#include "tests/integration/poisoning_backend.h"

namespace kvdepot {

void FillDeviceMemory(std::byte* /*data*/, size_t /*size_bytes*/, int /*byte*/) {
  KVDEPOT_CHECK(false);
}

}  // namespace kvdepot
