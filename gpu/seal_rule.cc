#include "gpu/seal_rule.h"

#include <algorithm>

namespace kvdepot {

DecidedSegments DecideDuringAddition(const SealRule& rule, uint64_t undecided_tokens,
                                     uint64_t addition_tokens) {
  DecidedSegments decided;
  if (addition_tokens < static_cast<uint64_t>(rule.prompt_tokens_min)) return decided;
  const uint64_t full = static_cast<uint64_t>(rule.segment_tokens_max);
  while (undecided_tokens >= rule.window_tokens + full) {
    decided.push_back(rule.segment_tokens_max);
    undecided_tokens -= full;
  }
  return decided;
}

DecidedSegments DecideAtEnd(const SealRule& rule, uint64_t undecided_tokens,
                            uint64_t addition_tokens) {
  if (addition_tokens >= static_cast<uint64_t>(rule.prompt_tokens_min)) {
    return DecideToWindow(rule, undecided_tokens);
  }
  DecidedSegments decided;
  const uint64_t step = static_cast<uint64_t>(rule.decode_seal_tokens);
  while (undecided_tokens >= rule.window_tokens + step) {
    decided.push_back(rule.decode_seal_tokens);
    undecided_tokens -= step;
  }
  return decided;
}

DecidedSegments DecideToWindow(const SealRule& rule, uint64_t undecided_tokens) {
  DecidedSegments decided;
  const uint64_t window = static_cast<uint64_t>(rule.window_tokens);
  if (undecided_tokens <= window) return decided;
  uint64_t leaving = (undecided_tokens - window) / kBlockTokens * kBlockTokens;
  while (leaving > 0) {
    const uint64_t tokens = std::min<uint64_t>(leaving, rule.segment_tokens_max);
    decided.push_back(static_cast<int>(tokens));
    leaving -= tokens;
  }
  return decided;
}

}  // namespace kvdepot
