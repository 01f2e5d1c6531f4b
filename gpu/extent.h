// A piece of device memory and what it is for.
#ifndef KVDEPOT_GPU_EXTENT_H_
#define KVDEPOT_GPU_EXTENT_H_

#include <cstddef>

namespace kvdepot {

// Extents of the two uses never share a slab: sealed ones are read-only to whoever maps them, and
// they live longer.
enum class ExtentUse { kSealed, kTail };

// Owns a piece of device memory; frees it when destroyed. The bytes are uninitialised.
class Extent {
 public:
  virtual ~Extent() = default;
  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 protected:
  Extent(std::byte* data, size_t size_bytes) : data_(data), size_bytes_(size_bytes) {}

 private:
  std::byte* data_;
  size_t size_bytes_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_EXTENT_H_
