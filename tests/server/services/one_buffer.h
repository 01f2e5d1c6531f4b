// The buffers of a lease that has registered one.
#ifndef KVDEPOT_TESTS_SERVER_SERVICES_ONE_BUFFER_H_
#define KVDEPOT_TESTS_SERVER_SERVICES_ONE_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "server/services/buffer_convert.h"

namespace kvdepot {

inline constexpr char kBufferLease[] = "lease";
inline constexpr uint64_t kBufferNumber = 7;
inline constexpr size_t kBufferBytes = 4096;

class OneBuffer final : public MappedRegion {
 public:
  OneBuffer() : MappedRegion(bytes_, kBufferBytes) {}

  static BufferRef Make() {
    return std::make_shared<RegisteredMemory>(std::make_unique<OneBuffer>(), 0);
  }
  // Knows the one; `buffer` null: none.
  static BufferFinder Finder(const BufferRef& buffer = Make()) {
    return [buffer](const v1::BufferRange& range) -> absl::StatusOr<BufferRef> {
      if (buffer != nullptr && range.lease_id() == kBufferLease &&
          range.buffer() == kBufferNumber) {
        return buffer;
      }
      return absl::NotFoundError("buffer: is not registered");
    };
  }

 private:
  alignas(16) std::byte bytes_[kBufferBytes] = {};
};

inline v1::BufferRange RangeOf(uint64_t offset, uint64_t size_bytes) {
  v1::BufferRange range;
  range.set_lease_id(kBufferLease);
  range.set_buffer(kBufferNumber);
  range.set_offset(offset);
  range.set_size_bytes(size_bytes);
  return range;
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_SERVICES_ONE_BUFFER_H_
