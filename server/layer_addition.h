// What one addition (an Append call, a Decode step) has brought to one layer, and what follows from
// it.
#ifndef KVDEPOT_SERVER_LAYER_ADDITION_H_
#define KVDEPOT_SERVER_LAYER_ADDITION_H_

#include <cstdint>

#include "absl/time/time.h"
#include "gpu/seal_rule.h"
#include "server/layer.h"
#include "server/segment.h"

namespace kvdepot {

struct LayerAddition {
  // The layer's count before. Tokens that were there already do not count to the addition.
  uint64_t position = 0;
  uint64_t token_count = 0;
};

// Under the engine's lock, after a part of the addition was stored.
// What is decided is due from `now` on.
void DecideDuringAddition(const SealRule& rule, const LayerAddition& addition, absl::Time now,
                          Layer* layer);

// Under the engine's lock, once. Decides the rest, and drops what left the sliding window. Queries
// that may still come are those of this addition, which are perhaps repeated, and those of readers,
// who stand at `committed_token_count` if other layers lag behind.
DroppedExtents EndAddition(const SealRule& rule, const LayerAddition& addition,
                           uint64_t committed_token_count, absl::Time now, Layer* layer);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_LAYER_ADDITION_H_
