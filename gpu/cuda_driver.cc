#include "gpu/cuda_driver.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "gpu/cuda_status.h"

namespace kvdepot {
namespace {

// Older than every call here, and than every driver that CUDA 13 runs on.
constexpr unsigned kCallsVersion = 12000;

template <typename Call>
absl::Status LookUp(const char* name, Call* call) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  absl::Status status = CudaStatus(
      cudaGetDriverEntryPointByVersion(name, &found, kCallsVersion, cudaEnableDefault, &result),
      absl::StrCat("looking up ", name));
  if (!status.ok()) return status;
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    return absl::InternalError(absl::StrCat("cuda: the driver has no ", name));
  }
  *call = reinterpret_cast<Call>(found);
  return absl::OkStatus();
}

absl::StatusOr<CudaDriver> LookUpAll() {
  CudaDriver driver;
  absl::Status status;
  const auto add = [&status](const char* name, auto* call) {
    if (status.ok()) status = LookUp(name, call);
  };
  add("cuGetErrorName", &driver.get_error_name);
  add("cuMemCreate", &driver.mem_create);
  add("cuMemRelease", &driver.mem_release);
  add("cuMemExportToShareableHandle", &driver.mem_export);
  add("cuMemImportFromShareableHandle", &driver.mem_import);
  add("cuMemAddressReserve", &driver.address_reserve);
  add("cuMemAddressFree", &driver.address_free);
  add("cuMemMap", &driver.mem_map);
  add("cuMemUnmap", &driver.mem_unmap);
  add("cuMemSetAccess", &driver.mem_set_access);
  add("cuMemGetAddressRange", &driver.get_address_range);
  if (!status.ok()) return status;
  return driver;
}

}  // namespace

absl::StatusOr<const CudaDriver*> CudaDriver::Get() {
  static const absl::StatusOr<CudaDriver>* const kDriver =
      new absl::StatusOr<CudaDriver>(LookUpAll());
  if (!kDriver->ok()) return kDriver->status();
  return &**kDriver;
}

absl::Status CudaDriver::ToStatus(CUresult result, absl::string_view what) const {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* name = nullptr;
  if (get_error_name(result, &name) != CUDA_SUCCESS) name = "an unknown error";
  const std::string message =
      absl::StrCat("cuda: ", what, ": ", name, " (", static_cast<int>(result), ")");
  return result == CUDA_ERROR_OUT_OF_MEMORY ? absl::ResourceExhaustedError(message)
                                            : absl::InternalError(message);
}

}  // namespace kvdepot
