// Device memory as sessions hold it: an extent together with its charge.
#ifndef KVDEPOT_SERVER_SEGMENT_H_
#define KVDEPOT_SERVER_SEGMENT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/backend.h"
#include "gpu/shape.h"
#include "server/memory_budget.h"

namespace kvdepot {

// The memory goes before its charge does, so that the ledger never shows less than what is in use.
struct StoredExtent {
  MemoryCharge charge;
  std::unique_ptr<Extent> memory;

  std::byte* data() const { return memory->data(); }

  // As Extent::Shrink, the charge too.
  void Shrink(uint64_t size_bytes) {
    memory->Shrink(size_bytes);
    charge.Split(charge.bytes() - size_bytes);
  }
};

// Shared because calls in flight read an extent after its session has dropped it: whoever is last
// frees it.
using ExtentRef = std::shared_ptr<const StoredExtent>;

// Extents that a session no longer lists. They are returned rather than dropped in place, because
// freeing device memory takes time and the caller holds the metadata lock.
using DroppedExtents = std::vector<ExtentRef>;

// One sealed segment of a layer. Its bytes are complete and never change.
struct Segment {
  ExtentRef extent;
  Codec codec = Codec::kRaw;
  // Position of its first token.
  uint64_t position = 0;
  // Tokens that it was sealed with.
  int capacity = 0;
  // How many of them, from the first, belong to the layer: fewer after a truncation inside it.
  int token_count = 0;

  uint64_t end() const { return position + static_cast<uint64_t>(token_count); }
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SEGMENT_H_
