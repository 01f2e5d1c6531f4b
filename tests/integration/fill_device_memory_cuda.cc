#include <cuda_runtime_api.h>

#include "gpu/check.h"
#include "tests/integration/poisoning_backend.h"

namespace kvdepot {

void FillDeviceMemory(std::byte* data, size_t size_bytes, int byte) {
  KVDEPOT_CHECK(cudaMemset(data, byte, size_bytes) == cudaSuccess);
  // Other streams do not wait for the null stream.
  KVDEPOT_CHECK(cudaStreamSynchronize(nullptr) == cudaSuccess);
}

}  // namespace kvdepot
