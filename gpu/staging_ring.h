// Host memory through which tensors go to the device while the host goes on.
#ifndef KVDEPOT_GPU_STAGING_RING_H_
#define KVDEPOT_GPU_STAGING_RING_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/device_memory.h"

namespace kvdepot {

// Equal slots of pinned memory, used in turn. Take a slot, fill it, queue on the stream what reads
// it, then pass it. Not thread-safe.
class StagingRing {
 public:
  StagingRing() = default;
  static absl::StatusOr<StagingRing> Create(int slots, size_t slot_bytes);

  size_t slot_bytes() const { return slot_bytes_; }

  // The slot whose turn it is, aligned to 256 bytes; waits for what was queued on it last.
  absl::StatusOr<std::byte*> Take();
  // What reads the slot has been queued on `stream`; the next one has its turn.
  absl::Status Pass(const Stream& stream);

 private:
  PinnedBuffer memory_;
  size_t slot_bytes_ = 0;
  std::vector<Event> read_;  // one a slot
  size_t turn_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_STAGING_RING_H_
