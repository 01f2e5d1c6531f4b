#include "server/layer_addition.h"

#include <algorithm>

namespace kvdepot {

void DecideDuringAddition(const SealRule& rule, const LayerAddition& addition, Layer* layer) {
  layer->Decide(DecideDuringAddition(rule, layer->undecided_tokens(), addition.token_count));
}

DroppedExtents EndAddition(const SealRule& rule, const LayerAddition& addition,
                           uint64_t committed_token_count, Layer* layer) {
  if (addition.token_count == 0) return {};
  layer->Decide(DecideAtEnd(rule, layer->undecided_tokens(), addition.token_count));
  const uint64_t next_query = std::min(addition.position, committed_token_count);
  return next_query == 0 ? DroppedExtents() : layer->DropBefore(next_query - 1);
}

}  // namespace kvdepot
