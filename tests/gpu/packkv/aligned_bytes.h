// Bytes aligned as segments are, and none behind them.
#ifndef KVDEPOT_TESTS_GPU_PACKKV_ALIGNED_BYTES_H_
#define KVDEPOT_TESTS_GPU_PACKKV_ALIGNED_BYTES_H_

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace kvdepot {

class AlignedBytes {
 public:
  // What a GPU's shared memory may hold before it is written: anything.
  explicit AlignedBytes(size_t size, int fill = 0x7B)
      : bytes_(static_cast<std::byte*>(::operator new(size, kAlignment))), size_(size) {
    std::memset(data(), fill, size);
  }
  std::byte* data() const { return bytes_.get(); }
  size_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlignment{128};
  struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> bytes_;
  size_t size_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_PACKKV_ALIGNED_BYTES_H_
