// Owners of what the CUDA runtime hands out: memory, streams, events.
//
// Move-only; each gives back what it owns when destroyed, without an error: at the process' end
// the runtime may be gone already. All belong to the device that is current when they are made.
#ifndef KVDEPOT_GPU_DEVICE_MEMORY_H_
#define KVDEPOT_GPU_DEVICE_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvdepot {

// Restores the calling thread's current device when destroyed.
class CurrentDevice {
 public:
  CurrentDevice() { known_ = cudaGetDevice(&index_) == cudaSuccess; }
  ~CurrentDevice() {
    if (known_) (void)cudaSetDevice(index_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int index_ = 0;
  bool known_ = false;
};

// Device memory, aligned to 256 bytes, uninitialised.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // RESOURCE_EXHAUSTED if the device has no such memory left.
  static absl::StatusOr<DeviceBuffer> Allocate(size_t size_bytes);

  std::byte* data() const { return memory_.get(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_bytes_ = 0;
};

// Host memory at a fixed place, which the device reads and writes under the same address.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  // RESOURCE_EXHAUSTED if the host has no such memory left.
  static absl::StatusOr<PinnedBuffer> Allocate(size_t size_bytes);

  std::byte* data() const { return memory_.get(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_bytes_ = 0;
};

// A queue of work for the device; what is in it runs in order. Does not wait for the legacy default
// stream.
class Stream {
 public:
  Stream() = default;
  static absl::StatusOr<Stream> Create();

  cudaStream_t get() const { return stream_.get(); }
  // Returns when all that was queued before is done; the error of whatever failed among it.
  absl::Status Synchronize() const;

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const;
  };
  std::unique_ptr<CUstream_st, Destroy> stream_;
};

// A place in a stream that the host can wait for. It takes no time stamps.
class Event {
 public:
  Event() = default;
  enum class Wait { kSpin, kSleep };
  static absl::StatusOr<Event> Create(Wait wait = Wait::kSpin);

  cudaEvent_t get() const { return event_.get(); }
  absl::Status Record(cudaStream_t stream) const;
  // Returns when the stream has come to where Record was called last; at once if it never was.
  absl::Status Synchronize() const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const;
  };
  std::unique_ptr<CUevent_st, Destroy> event_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DEVICE_MEMORY_H_
