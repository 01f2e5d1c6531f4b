// Finds the GPU that a daemon serves.
#ifndef KVDEPOT_GPU_CUDA_DEVICE_H_
#define KVDEPOT_GPU_CUDA_DEVICE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvdepot {

struct CudaDevice {
  int index = 0;
  // "GPU-" and five groups of hexadecimal digits, as nvidia-smi prints it.
  std::string uuid;
  // The product.
  std::string name;
};

// The device that `name` names ("auto": the first; "cuda:N"; a UUID), made current for the calling
// thread. FAILED_PRECONDITION: the driver is missing or too old, with the one found and the one
// required. NOT_FOUND: no such device. INVALID_ARGUMENT: it is older than compute capability 9.0.
absl::StatusOr<CudaDevice> OpenCudaDevice(const std::string& name);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CUDA_DEVICE_H_
