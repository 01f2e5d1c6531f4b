#include "gpu/kernel_arguments.h"

#include <utility>

#include "gpu/cuda_status.h"

namespace kvdepot {

absl::StatusOr<KernelArguments> KernelArguments::Create(size_t capacity_bytes) {
  KernelArguments arguments;
  absl::StatusOr<PinnedBuffer> host = PinnedBuffer::Allocate(capacity_bytes);
  if (!host.ok()) return host.status();
  absl::StatusOr<DeviceBuffer> device = DeviceBuffer::Allocate(capacity_bytes);
  if (!device.ok()) return device.status();
  arguments.host_ = *std::move(host);
  arguments.device_ = *std::move(device);
  return arguments;
}

size_t KernelArguments::Reserve(size_t size_bytes) {
  constexpr size_t kAlignment = 256;
  const size_t offset = used_bytes_;
  used_bytes_ += (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
  KVDEPOT_CHECK(used_bytes_ <= host_.size_bytes());
  return offset;
}

absl::Status KernelArguments::Upload(const Stream& stream) const {
  return CudaStatus(cudaMemcpyAsync(device_.data(), host_.data(), used_bytes_,
                                    cudaMemcpyHostToDevice, stream.get()),
                    "cudaMemcpyAsync of arguments");
}

}  // namespace kvdepot
