// The CUDA runtime's errors as Status.
#ifndef KVDEPOT_GPU_CUDA_STATUS_H_
#define KVDEPOT_GPU_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

// INTERNAL naming what was being done, the error and its number; RESOURCE_EXHAUSTED where the
// device or the host has no memory left. OK for cudaSuccess.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

// Whether the error has ended the process' context on the device: from then on every call fails
// with it, and only another process gets further.
bool IsSticky(cudaError_t error);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CUDA_STATUS_H_
