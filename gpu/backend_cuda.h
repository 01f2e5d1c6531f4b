// A backend on one NVIDIA GPU.
#ifndef KVDEPOT_GPU_BACKEND_CUDA_H_
#define KVDEPOT_GPU_BACKEND_CUDA_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/backend.h"
#include "gpu/ipc_region.h"
#include "gpu/slab_pool.h"

namespace kvdepot {

struct CudaBackendOptions {
  // "auto" (the first GPU), "cuda:N" or "GPU-" and the rest of a UUID.
  std::string device = "auto";
  // What the budget is cut into (slab_pool.h).
  uint64_t slab_bytes = kSlabBytesDefault;
  // How slabs travel to processes that map them: kCudaMemory or kCudaIpc (device_slab.h).
  RegionKind slab_kind = RegionKind::kCudaMemory;
  // Called once, when health() ceases to be OK, by the thread that found out. May be empty.
  std::function<void(const absl::Status&)> on_fault;
};

// FAILED_PRECONDITION naming the driver found and the one required, NOT_FOUND if there is no such
// GPU, INVALID_ARGUMENT if it is too old, UNIMPLEMENTED in a build without CUDA.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_BACKEND_CUDA_H_
