// From a device's name to its backend: the only place that knows which backends are compiled in.
#ifndef KVDEPOT_GPU_BACKEND_FACTORY_H_
#define KVDEPOT_GPU_BACKEND_FACTORY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/backend.h"
#include "gpu/backend_cuda.h"
#include "gpu/slab_pool.h"

namespace kvdepot {

struct BackendOptions {
  // As of --device: "auto", "cpu", "cuda:N" or a GPU's UUID. "auto" is the CPU only where no NVIDIA
  // device node exists: a GPU that does not work is an error, not a slow daemon.
  std::string device = "auto";
  // Of the CPU backend, at least 1.
  int threads = 1;
  // What memory of sessions is cut from (slab_pool.h).
  uint64_t slab_bytes = kSlabBytesDefault;
  // `device` and `slab_bytes` in it are replaced.
  CudaBackendOptions cuda;
};

// Errors as MakeCudaBackend. `device` is a device's name (device_name.h).
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_BACKEND_FACTORY_H_
