#include "gpu/device_memory.h"

#include "absl/strings/str_cat.h"
#include "gpu/cuda_status.h"

namespace kvdepot {

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(size_t size_bytes) {
  void* memory = nullptr;
  absl::Status status =
      CudaStatus(cudaMalloc(&memory, size_bytes), absl::StrCat("cudaMalloc of ", size_bytes, " B"));
  if (!status.ok()) {
    // A refused allocation stays behind as the thread's last error.
    (void)cudaGetLastError();
    return status;
  }
  DeviceBuffer buffer;
  buffer.memory_.reset(static_cast<std::byte*>(memory));
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

void DeviceBuffer::Free::operator()(std::byte* memory) const { (void)cudaFree(memory); }

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(size_t size_bytes) {
  void* memory = nullptr;
  absl::Status status = CudaStatus(cudaMallocHost(&memory, size_bytes),
                                   absl::StrCat("cudaMallocHost of ", size_bytes, " B"));
  if (!status.ok()) {
    (void)cudaGetLastError();
    return status;
  }
  PinnedBuffer buffer;
  buffer.memory_.reset(static_cast<std::byte*>(memory));
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

void PinnedBuffer::Free::operator()(std::byte* memory) const { (void)cudaFreeHost(memory); }

absl::StatusOr<Stream> Stream::Create() {
  cudaStream_t made = nullptr;
  absl::Status status =
      CudaStatus(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreate");
  if (!status.ok()) return status;
  Stream stream;
  stream.stream_.reset(made);
  return stream;
}

absl::Status Stream::Synchronize() const {
  return CudaStatus(cudaStreamSynchronize(get()), "cudaStreamSynchronize");
}

void Stream::Destroy::operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }

absl::StatusOr<Event> Event::Create(Wait wait) {
  cudaEvent_t made = nullptr;
  const unsigned flags =
      cudaEventDisableTiming | (wait == Wait::kSleep ? cudaEventBlockingSync : 0u);
  absl::Status status = CudaStatus(cudaEventCreateWithFlags(&made, flags), "cudaEventCreate");
  if (!status.ok()) return status;
  Event event;
  event.event_.reset(made);
  return event;
}

absl::Status Event::Record(cudaStream_t stream) const {
  return CudaStatus(cudaEventRecord(get(), stream), "cudaEventRecord");
}

absl::Status Event::Synchronize() const {
  return CudaStatus(cudaEventSynchronize(get()), "cudaEventSynchronize");
}

void Event::Destroy::operator()(cudaEvent_t event) const { (void)cudaEventDestroy(event); }

}  // namespace kvdepot
