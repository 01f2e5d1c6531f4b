#include "server/layer_addition.h"

#include <algorithm>

namespace kvdepot {

void DecideDuringAddition(const SealRule& rule, const LayerAddition& addition, absl::Time now,
                          Layer* layer) {
  layer->Decide(DecideDuringAddition(rule, layer->undecided_tokens(), addition.token_count), now);
}

DroppedExtents EndAddition(const SealRule& rule, const LayerAddition& addition,
                           uint64_t committed_token_count, absl::Time now, Layer* layer) {
  if (addition.token_count == 0) return {};
  layer->Decide(DecideAtEnd(rule, layer->undecided_tokens(), addition.token_count), now);
  const uint64_t next_query = std::min(addition.position, committed_token_count);
  return next_query == 0 ? DroppedExtents() : layer->DropBefore(next_query - 1);
}

}  // namespace kvdepot
