#include "gpu/staging_ring.h"

#include <utility>

namespace kvdepot {

absl::StatusOr<StagingRing> StagingRing::Create(int slots, size_t slot_bytes) {
  StagingRing ring;
  ring.slot_bytes_ = slot_bytes;
  absl::StatusOr<PinnedBuffer> memory =
      PinnedBuffer::Allocate(static_cast<size_t>(slots) * slot_bytes);
  if (!memory.ok()) return memory.status();
  ring.memory_ = *std::move(memory);
  for (int slot = 0; slot < slots; ++slot) {
    absl::StatusOr<Event> event = Event::Create();
    if (!event.ok()) return event.status();
    ring.read_.push_back(*std::move(event));
  }
  return ring;
}

absl::StatusOr<std::byte*> StagingRing::Take() {
  absl::Status read = read_[turn_].Synchronize();
  if (!read.ok()) return read;
  return memory_.data() + turn_ * slot_bytes_;
}

absl::Status StagingRing::Pass(const Stream& stream) {
  absl::Status recorded = read_[turn_].Record(stream.get());
  turn_ = (turn_ + 1) % read_.size();
  return recorded;
}

}  // namespace kvdepot
