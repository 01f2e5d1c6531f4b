// Which tokens of a layer are sealed when a session gets them as one prompt (gpu/seal_rule.h with
// the daemon's defaults): 16 exact sinks, whole blocks in segments of up to 1024 tokens, and an
// exact tail of 64 to 127.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_

#include <numeric>

#include "gpu/seal_rule.h"
#include "gpu/shape.h"

namespace kvdepot {

// With fewer nothing would be sealed.
inline constexpr int kPromptTokensMin = kSinkTokens + SealRule().window_tokens + kBlockTokens;

struct PromptLayout {
  int tokens = 0;
  DecidedSegments segments;  // Tokens of each, from the sinks on.

  int sealed_tokens() const { return std::accumulate(segments.begin(), segments.end(), 0); }
  int sealed_end() const { return kSinkTokens + sealed_tokens(); }
  // What sinks and tail take: their extents hold whole blocks but for the sinks'.
  int exact_slots() const {
    return kSinkTokens + (tokens - sealed_end() + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  }
};

// `tokens` >= kPromptTokensMin. Shorter ones than SealRule::prompt_tokens_min are sealed as well.
inline PromptLayout LayoutOfPrompt(int tokens) {
  return {tokens, DecideToWindow(SealRule(), static_cast<uint64_t>(tokens - kSinkTokens))};
}

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_
