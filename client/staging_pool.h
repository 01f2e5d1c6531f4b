// Pinned host memory that is used for a while and then again. Internal to the client library.
#ifndef KVDEPOT_CLIENT_STAGING_POOL_H_
#define KVDEPOT_CLIENT_STAGING_POOL_H_

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/device_memory.h"

namespace kvdepot {

// Thread-safe.
class StagingPool {
 public:
  StagingPool() : spare_(std::make_shared<Spare>()) {}

  // At least so many bytes, until the last reference goes. RESOURCE_EXHAUSTED.
  absl::StatusOr<std::shared_ptr<PinnedBuffer>> Take(size_t size_bytes);

 private:
  struct Spare {
    std::mutex mutex;
    std::vector<PinnedBuffer> buffers;  // guarded by mutex
  };
  const std::shared_ptr<Spare> spare_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_STAGING_POOL_H_
