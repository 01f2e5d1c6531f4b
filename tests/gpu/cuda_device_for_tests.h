// The GPU for tests that need one.
#ifndef KVDEPOT_TESTS_GPU_CUDA_DEVICE_FOR_TESTS_H_
#define KVDEPOT_TESTS_GPU_CUDA_DEVICE_FOR_TESTS_H_

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "gpu/backend_cuda.h"
#include "gtest/gtest.h"

namespace kvdepot {

// A backend on the GPU that KVDEPOT_TEST_DEVICE names; if that does not work, the test fails.
// Without the variable the first GPU, or null if this machine has none that works: skip then.
inline std::unique_ptr<Backend> MakeCudaBackendForTests() {
  CudaBackendOptions options;
  options.slab_bytes = 4 * kSlabGranularityBytes;
  const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
  const bool required = device != nullptr && std::string(device) != "cpu";
  if (required) options.device = device;
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeCudaBackend(options);
  if (backend.ok()) return *std::move(backend);
  EXPECT_FALSE(required) << backend.status();
  return nullptr;
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_CUDA_DEVICE_FOR_TESTS_H_
