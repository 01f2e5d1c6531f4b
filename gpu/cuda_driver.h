// Calls of the CUDA driver for which the runtime has no equal: device memory whose ownership can be
// handed to another process as a file descriptor ("virtual memory management").
//
// They are looked up when first needed, so that a program starts where there is no driver.
#ifndef KVDEPOT_GPU_CUDA_DRIVER_H_
#define KVDEPOT_GPU_CUDA_DRIVER_H_

#include <cuda.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

struct CudaDriver {
  decltype(&::cuGetErrorName) get_error_name = nullptr;
  decltype(&::cuMemCreate) mem_create = nullptr;
  decltype(&::cuMemRelease) mem_release = nullptr;
  decltype(&::cuMemExportToShareableHandle) mem_export = nullptr;
  decltype(&::cuMemImportFromShareableHandle) mem_import = nullptr;
  decltype(&::cuMemAddressReserve) address_reserve = nullptr;
  decltype(&::cuMemAddressFree) address_free = nullptr;
  decltype(&::cuMemMap) mem_map = nullptr;
  decltype(&::cuMemUnmap) mem_unmap = nullptr;
  decltype(&::cuMemSetAccess) mem_set_access = nullptr;
  // Of memory from cudaMalloc: where it begins and how much there is.
  decltype(&::cuMemGetAddressRange) get_address_range = nullptr;

  // INTERNAL naming the first call that this machine's driver lacks. Lives as long as the process.
  static absl::StatusOr<const CudaDriver*> Get();

  // As CudaStatus of the runtime's errors.
  absl::Status ToStatus(CUresult result, absl::string_view what) const;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CUDA_DRIVER_H_
