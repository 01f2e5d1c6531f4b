// A piece of device memory and what it is for.
#ifndef KVDEPOT_GPU_EXTENT_H_
#define KVDEPOT_GPU_EXTENT_H_

#include <cstddef>
#include <cstdint>

#include "gpu/check.h"

namespace kvdepot {

// Extents of the two uses never share a slab: sealed ones are read-only to whoever maps them, and
// they live longer.
enum class ExtentUse { kSealed, kTail };

// The slab that an extent is cut from, by its serial number, and where in it. Serial 0: none.
struct SlabPlace {
  uint64_t serial = 0;
  uint64_t offset = 0;
};

// Owns a piece of device memory; frees it when destroyed. The bytes are uninitialised.
class Extent {
 public:
  virtual ~Extent() = default;
  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }
  const SlabPlace& place() const { return place_; }

  // Gives back what lies behind the first `size_bytes`, 1 to size_bytes(): those stay where they
  // are. Nobody uses the rest any more. Any thread, one at a time.
  void Shrink(size_t size_bytes) {
    KVDEPOT_CHECK(size_bytes > 0 && size_bytes <= size_bytes_);
    GiveBackBehind(size_bytes);
    size_bytes_ = size_bytes;
  }

 protected:
  Extent(std::byte* data, size_t size_bytes, SlabPlace place = {})
      : data_(data), size_bytes_(size_bytes), place_(place) {}

  // The memory's part of Shrink; where memory goes in one piece only, nothing.
  virtual void GiveBackBehind(size_t /*size_bytes*/) {}

 private:
  std::byte* data_;
  size_t size_bytes_;
  SlabPlace place_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_EXTENT_H_
