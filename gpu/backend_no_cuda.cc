// Stands for backend_cuda.cc where no CUDA toolkit was found.
#include "absl/strings/str_cat.h"
#include "gpu/backend_cuda.h"

namespace kvdepot {

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  return absl::UnimplementedError(absl::StrCat(
      "device: ", options.device, ", this build has no CUDA backend; device cpu works"));
}

}  // namespace kvdepot
