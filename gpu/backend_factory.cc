#include "gpu/backend_factory.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace kvdepot {
namespace {

// "/dev/nvidia" and a number is a GPU; "/dev/dxg" is one lent by Windows.
bool HasGpuNode() {
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/dev", error), end; entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    absl::string_view number = name;
    int index = 0;
    if (name == "dxg") return true;
    if (absl::ConsumePrefix(&number, "nvidia") && absl::SimpleAtoi(number, &index)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.device == "cpu" || (options.device == "auto" && !HasGpuNode())) {
    return MakeCpuBackend(options.threads, options.slab_bytes);
  }
  CudaBackendOptions cuda = options.cuda;
  cuda.device = options.device;
  cuda.slab_bytes = options.slab_bytes;
  return MakeCudaBackend(cuda);
}

}  // namespace kvdepot
