#include "gpu/device_slab.h"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"
#include "gpu/cuda_driver.h"
#include "gpu/cuda_status.h"
#include "gpu/device_memory.h"

namespace kvdepot {
namespace {

absl::Status NoMemory(const absl::Status& status) {
  return absl::IsResourceExhausted(status)
             ? absl::ResourceExhaustedError(absl::StrCat("device_memory: ", status.message()))
             : status;
}

CUmemLocation LocationOf(int device) {
  CUmemLocation location = {};
  location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  location.id = device;
  return location;
}

// Memory that lives as long as somebody holds it: this, a descriptor, a mapping.
class Allocation {
 public:
  Allocation(const CudaDriver* driver, CUmemGenericAllocationHandle handle)
      : driver_(driver), handle_(handle) {}
  ~Allocation() { (void)driver_->mem_release(handle_); }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  CUmemGenericAllocationHandle handle() const { return handle_; }

 private:
  const CudaDriver* const driver_;
  const CUmemGenericAllocationHandle handle_;
};

// An allocation at an address of this process.
class AddressRange {
 public:
  static absl::StatusOr<std::unique_ptr<AddressRange>> Map(const CudaDriver& driver,
                                                           const Allocation& allocation,
                                                           size_t size_bytes, int device,
                                                           RegionAccess access) {
    CUdeviceptr address = 0;
    absl::Status status =
        driver.ToStatus(driver.address_reserve(&address, size_bytes, kSlabGranularityBytes, 0, 0),
                        absl::StrCat("reserving ", size_bytes, " B of addresses"));
    if (!status.ok()) return status;
    std::unique_ptr<AddressRange> range(new AddressRange(&driver, address, size_bytes));
    status = driver.ToStatus(driver.mem_map(address, size_bytes, 0, allocation.handle(), 0),
                             "mapping device memory");
    if (!status.ok()) return status;
    range->is_mapped_ = true;
    CUmemAccessDesc rights = {};
    rights.location = LocationOf(device);
    rights.flags = access == RegionAccess::kRead ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                                 : CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    status = driver.ToStatus(driver.mem_set_access(address, size_bytes, &rights, 1),
                             "giving access to device memory");
    if (!status.ok()) return status;
    return range;
  }
  ~AddressRange() {
    if (is_mapped_) (void)driver_->mem_unmap(address_, size_bytes_);
    (void)driver_->address_free(address_, size_bytes_);
  }
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  std::byte* data() const {
    // The driver names addresses by integers.
    return reinterpret_cast<std::byte*>(address_);  // NOLINT(performance-no-int-to-ptr)
  }

 private:
  AddressRange(const CudaDriver* driver, CUdeviceptr address, size_t size_bytes)
      : driver_(driver), address_(address), size_bytes_(size_bytes) {}

  const CudaDriver* const driver_;
  const CUdeviceptr address_;
  const size_t size_bytes_;
  bool is_mapped_ = false;
};

class VirtualSlab final : public SlabMemory {
 public:
  static absl::StatusOr<std::unique_ptr<SlabMemory>> Make(const CudaDevice& device,
                                                          size_t size_bytes) {
    const absl::StatusOr<const CudaDriver*> driver = CudaDriver::Get();
    if (!driver.ok()) return driver.status();
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location = LocationOf(device.index);
    CUmemGenericAllocationHandle handle = 0;
    absl::Status status =
        (*driver)->ToStatus((*driver)->mem_create(&handle, size_bytes, &properties, 0),
                            absl::StrCat("cuMemCreate of ", size_bytes, " B"));
    if (!status.ok()) return status;
    auto allocation = std::make_unique<Allocation>(*driver, handle);
    auto range = AddressRange::Map(**driver, *allocation, size_bytes, device.index,
                                   RegionAccess::kReadWrite);
    if (!range.ok()) return range.status();
    return std::unique_ptr<SlabMemory>(new VirtualSlab(*driver, device.uuid, std::move(allocation),
                                                       *std::move(range), size_bytes));
  }

  absl::StatusOr<IpcRegion> Export() const override {
    int descriptor = -1;
    absl::Status status =
        driver_->ToStatus(driver_->mem_export(&descriptor, allocation_->handle(),
                                              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
                          "exporting a slab");
    if (!status.ok()) return status;
    IpcRegion region;
    region.kind = RegionKind::kCudaMemory;
    region.device = device_;
    region.size_bytes = size_bytes();
    region.descriptor = FileDescriptor(descriptor);
    return region;
  }

 private:
  VirtualSlab(const CudaDriver* driver, std::string device, std::unique_ptr<Allocation> allocation,
              std::unique_ptr<AddressRange> range, size_t size_bytes)
      : SlabMemory(range->data(), size_bytes),
        driver_(driver),
        device_(std::move(device)),
        allocation_(std::move(allocation)),
        range_(std::move(range)) {}

  const CudaDriver* const driver_;
  const std::string device_;
  const std::unique_ptr<Allocation> allocation_;
  const std::unique_ptr<AddressRange> range_;
};

class IpcSlab final : public SlabMemory {
 public:
  static absl::StatusOr<std::unique_ptr<SlabMemory>> Make(const CudaDevice& device,
                                                          size_t size_bytes) {
    absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(size_bytes);
    if (!buffer.ok()) return buffer.status();
    return std::unique_ptr<SlabMemory>(new IpcSlab(device.uuid, *std::move(buffer)));
  }

  absl::StatusOr<IpcRegion> Export() const override {
    cudaIpcMemHandle_t handle;
    absl::Status status = CudaStatus(cudaIpcGetMemHandle(&handle, data()), "exporting a slab");
    if (!status.ok()) return status;
    IpcRegion region;
    region.kind = RegionKind::kCudaIpc;
    region.device = device_;
    region.size_bytes = size_bytes();
    region.handle.assign(handle.reserved, sizeof(handle.reserved));
    return region;
  }

 private:
  IpcSlab(std::string device, DeviceBuffer buffer)
      : SlabMemory(buffer.data(), buffer.size_bytes()),
        device_(std::move(device)),
        buffer_(std::move(buffer)) {}

  const std::string device_;
  const DeviceBuffer buffer_;
};

class MappedAddressRange final : public MappedRegion {
 public:
  MappedAddressRange(std::unique_ptr<AddressRange> range, size_t size_bytes)
      : MappedRegion(range->data(), size_bytes), range_(std::move(range)) {}

 private:
  const std::unique_ptr<AddressRange> range_;
};

class OpenedIpcHandle final : public MappedRegion {
 public:
  OpenedIpcHandle(void* data, size_t size_bytes, int device)
      : MappedRegion(static_cast<std::byte*>(data), size_bytes), device_(device) {}
  ~OpenedIpcHandle() override {
    const CurrentDevice callers;
    (void)cudaSetDevice(device_);
    (void)cudaIpcCloseMemHandle(data());
  }

 private:
  const int device_;
};

// What the allocation that `address` lies in takes.
struct Allocated {
  CUdeviceptr begin = 0;
  size_t size_bytes = 0;
};

absl::StatusOr<Allocated> AllocationAround(const void* address) {
  const absl::StatusOr<const CudaDriver*> driver = CudaDriver::Get();
  if (!driver.ok()) return driver.status();
  Allocated around;
  absl::Status status =
      (*driver)->ToStatus((*driver)->get_address_range(&around.begin, &around.size_bytes,
                                                       reinterpret_cast<CUdeviceptr>(address)),
                          "asking for the size of memory");
  if (!status.ok()) return status;
  return around;
}

// What this process cannot map is no fault of the device.
absl::Status Refused(const absl::Status& status) {
  if (status.ok() || !absl::IsInternal(status)) return status;
  return absl::FailedPreconditionError(absl::StrCat("region: ", status.message()));
}

absl::StatusOr<std::unique_ptr<MappedRegion>> MapDescriptor(const IpcRegion& region, int device,
                                                            RegionAccess access) {
  const absl::StatusOr<const CudaDriver*> driver = CudaDriver::Get();
  if (!driver.ok()) return driver.status();
  CUmemGenericAllocationHandle handle = 0;
  // The driver takes a descriptor for a pointer.
  void* const descriptor =
      reinterpret_cast<void*>(static_cast<intptr_t>(region.descriptor.get()));  // NOLINT
  absl::Status status = (*driver)->ToStatus(
      (*driver)->mem_import(&handle, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
      "importing a descriptor");
  if (!status.ok()) return status;
  // The mapping keeps the memory.
  const Allocation allocation(*driver, handle);
  auto range = AddressRange::Map(**driver, allocation, region.size_bytes, device, access);
  if (!range.ok()) return range.status();
  return std::make_unique<MappedAddressRange>(*std::move(range), region.size_bytes);
}

absl::StatusOr<std::unique_ptr<MappedRegion>> OpenHandle(const IpcRegion& region, int device) {
  cudaIpcMemHandle_t handle;
  if (region.handle.size() != sizeof(handle.reserved)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "region.handle: ", region.handle.size(), " bytes, must have ", sizeof(handle.reserved)));
  }
  std::memcpy(handle.reserved, region.handle.data(), sizeof(handle.reserved));
  void* data = nullptr;
  absl::Status status = CudaStatus(
      cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess), "opening a handle");
  // Stays behind as the thread's last error otherwise.
  if (!status.ok()) {
    (void)cudaGetLastError();
    return status;
  }
  auto opened = std::make_unique<OpenedIpcHandle>(data, region.size_bytes, device);
  const absl::StatusOr<Allocated> around = AllocationAround(data);
  if (!around.ok()) return around.status();
  if (region.size_bytes <= around->size_bytes) return opened;
  return absl::FailedPreconditionError(absl::StrCat("region.size_bytes: ", region.size_bytes,
                                                    ", its handle has ", around->size_bytes));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlabMemory>> MakeDeviceSlab(const CudaDevice& device,
                                                           size_t size_bytes, RegionKind kind) {
  KVDEPOT_CHECK(kind != RegionKind::kSharedMemory);
  absl::Status status = CudaStatus(cudaSetDevice(device.index), "cudaSetDevice");
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<SlabMemory>> slab = kind == RegionKind::kCudaMemory
                                                         ? VirtualSlab::Make(device, size_bytes)
                                                         : IpcSlab::Make(device, size_bytes);
  if (!slab.ok()) return NoMemory(slab.status());
  status = CudaStatus(cudaMemset((*slab)->data(), 0, size_bytes), "cudaMemset of a slab");
  // The null stream does not wait for other streams, nor they for it.
  if (status.ok()) status = CudaStatus(cudaStreamSynchronize(nullptr), "cudaMemset of a slab");
  if (!status.ok()) return status;
  return slab;
}

absl::StatusOr<std::unique_ptr<MappedRegion>> MapDeviceRegion(const IpcRegion& region,
                                                              RegionAccess access) {
  const CurrentDevice callers;
  const absl::StatusOr<CudaDevice> device = OpenCudaDevice(region.device);
  if (!device.ok()) {
    return absl::FailedPreconditionError(absl::StrCat("region.", device.status().message()));
  }
  auto mapped = region.kind == RegionKind::kCudaMemory
                    ? MapDescriptor(region, device->index, access)
                    : OpenHandle(region, device->index);
  if (!mapped.ok()) return Refused(mapped.status());
  return mapped;
}

absl::StatusOr<ExportedMemory> ExportDeviceMemory(const void* data, size_t size_bytes) {
  const absl::StatusOr<Allocated> around = AllocationAround(data);
  if (!around.ok()) return Refused(around.status());
  ExportedMemory exported;
  exported.offset = reinterpret_cast<CUdeviceptr>(data) - around->begin;
  if (size_bytes > around->size_bytes - exported.offset) {
    return absl::FailedPreconditionError(
        absl::StrCat("region.size_bytes: ", size_bytes, ", the allocation has ",
                     around->size_bytes - exported.offset, " from there on"));
  }
  cudaIpcMemHandle_t handle;
  absl::Status status = CudaStatus(cudaIpcGetMemHandle(&handle, const_cast<void*>(data)),
                                   "exporting memory, which must come from cudaMalloc");
  if (!status.ok()) {
    (void)cudaGetLastError();
    return Refused(status);
  }
  exported.region.kind = RegionKind::kCudaIpc;
  exported.region.size_bytes = around->size_bytes;
  exported.region.handle.assign(handle.reserved, sizeof(handle.reserved));
  return exported;
}

}  // namespace kvdepot
