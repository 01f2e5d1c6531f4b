// Registered memory of a test, on whatever device its daemon has, read and written from the host.
#ifndef KVDEPOT_TESTS_INTEGRATION_SHOWN_MEMORY_H_
#define KVDEPOT_TESTS_INTEGRATION_SHOWN_MEMORY_H_

#include <cstddef>
#include <memory>
#include <string>

#include "client/registered_buffer.h"

namespace kvdepot {

class ShownMemory {
 public:
  // Of host memory, or of the GPU of `lease`'s daemon. Fails the test and returns null where it
  // cannot be registered.
  static std::unique_ptr<ShownMemory> Make(const std::shared_ptr<Lease>& lease, size_t size_bytes);
  virtual ~ShownMemory() = default;

  virtual RegisteredBuffer& buffer() = 0;
  virtual void Write(size_t offset, const std::string& bytes) = 0;
  virtual std::string Read(size_t offset, size_t size_bytes) = 0;
};

std::unique_ptr<ShownMemory> MakeCudaMemory(const std::shared_ptr<Lease>& lease, size_t size_bytes);

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_SHOWN_MEMORY_H_
