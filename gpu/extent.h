// A piece of device memory and what it is for.
#ifndef KVDEPOT_GPU_EXTENT_H_
#define KVDEPOT_GPU_EXTENT_H_

#include <cstddef>
#include <cstdint>

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

 protected:
  Extent(std::byte* data, size_t size_bytes, SlabPlace place = {})
      : data_(data), size_bytes_(size_bytes), place_(place) {}

 private:
  std::byte* data_;
  size_t size_bytes_;
  SlabPlace place_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_EXTENT_H_
