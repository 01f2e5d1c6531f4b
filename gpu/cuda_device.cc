#include "gpu/cuda_device.h"

#include <cuda_runtime_api.h>

#include <cctype>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gpu/cuda_status.h"

namespace kvdepot {
namespace {

// The first driver that knows the runtime's CUDA 13.
constexpr absl::string_view kDriverRequired = "580 or newer (CUDA 13.0)";
constexpr int kComputeMajorMin = 9;

std::string CudaVersion(int version) {
  return absl::StrCat("CUDA ", version / 1000, ".", version % 1000 / 10);
}

// "580.95.05": the first word of the kernel module's line that begins with a digit and has a dot.
std::string DriverRelease() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    if (absl::ascii_isdigit(static_cast<unsigned char>(word[0])) &&
        word.find('.') != std::string::npos) {
      return word;
    }
  }
  return "of unknown release";
}

absl::Status CheckDriver(const std::string& device) {
  int found = 0;
  absl::Status status = CudaStatus(cudaDriverGetVersion(&found), "cudaDriverGetVersion");
  if (!status.ok()) return status;
  if (found >= CUDART_VERSION / 1000 * 1000) return absl::OkStatus();
  const std::string what =
      found == 0 ? std::string("no NVIDIA driver (libcuda.so.1)")
                 : absl::StrCat("driver ", DriverRelease(), " (", CudaVersion(found), ")");
  return absl::FailedPreconditionError(
      absl::StrCat("device: ", device, ", ", what, " found, ", kDriverRequired, " is required"));
}

std::string UuidText(const cudaUUID_t& uuid) {
  const std::string hex = absl::BytesToHexString(absl::string_view(uuid.bytes, sizeof(uuid.bytes)));
  return absl::StrCat("GPU-", hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-",
                      hex.substr(16, 4), "-", hex.substr(20));
}

}  // namespace

absl::StatusOr<CudaDevice> OpenCudaDevice(const std::string& name) {
  absl::Status status = CheckDriver(name);
  if (!status.ok()) return status;
  int count = 0;
  status = CudaStatus(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  if (!status.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("device: ", name, ", ", status.message(),
                                                      "; driver ", DriverRelease(), " found, ",
                                                      kDriverRequired, " is required"));
  }
  absl::string_view number = name;
  int wanted = name == "auto" ? 0 : -1;
  if (absl::ConsumePrefix(&number, "cuda:") && !absl::SimpleAtoi(number, &wanted)) wanted = -1;
  for (int index = 0; index < count; ++index) {
    cudaDeviceProp properties;
    status = CudaStatus(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    if (!status.ok()) return status;
    const std::string uuid = UuidText(properties.uuid);
    if (index != wanted && uuid != name) continue;
    if (properties.major < kComputeMajorMin) {
      return absl::InvalidArgumentError(absl::StrCat("device: ", name, " is ", properties.name,
                                                     " (sm_", properties.major, properties.minor,
                                                     "), must be sm_90 (Hopper) or newer"));
    }
    status = CudaStatus(cudaSetDevice(index), absl::StrCat("device: ", name, ", cudaSetDevice"));
    if (!status.ok()) return status;
    return CudaDevice{index, uuid, properties.name};
  }
  return absl::NotFoundError(
      absl::StrCat("device: ", name, ", not among the ", count, " GPUs that the driver shows"));
}

}  // namespace kvdepot
