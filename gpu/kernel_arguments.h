// Arrays that kernels read: gathered in host memory, copied to the device in one go.
#ifndef KVDEPOT_GPU_KERNEL_ARGUMENTS_H_
#define KVDEPOT_GPU_KERNEL_ARGUMENTS_H_

#include <cstddef>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/check.h"
#include "gpu/device_memory.h"

namespace kvdepot {

// Not thread-safe. Used again only when what reads the arrays is done.
class KernelArguments {
 public:
  KernelArguments() = default;
  static absl::StatusOr<KernelArguments> Create(size_t capacity_bytes);

  // The same array on both sides: write to `host`, hand `device` to kernels.
  template <typename T>
  struct Array {
    T* host = nullptr;
    T* device = nullptr;
  };

  void Clear() { used_bytes_ = 0; }

  // Room for `count` entries, aligned to 256 bytes. There must be room.
  template <typename T>
  Array<T> Add(size_t count) {
    static_assert(std::is_trivially_copyable_v<T>, "copied as bytes");
    const size_t offset = Reserve(count * sizeof(T));
    return {reinterpret_cast<T*>(host_.data() + offset),
            reinterpret_cast<T*>(device_.data() + offset)};
  }

  // Queues the copy of all arrays. They must have their values.
  absl::Status Upload(const Stream& stream) const;

 private:
  size_t Reserve(size_t size_bytes);

  PinnedBuffer host_;
  DeviceBuffer device_;
  size_t used_bytes_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_KERNEL_ARGUMENTS_H_
