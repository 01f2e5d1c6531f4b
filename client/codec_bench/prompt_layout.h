// Which tokens of a layer are sealed when a session gets them as one prompt (server/seal_rule.h
// with the daemon's defaults): 16 exact sinks, whole blocks in segments of up to 1024 tokens, and
// an exact tail of 64 to 127.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_

#include <algorithm>
#include <vector>

#include "gpu/shape.h"

namespace kvdepot {

inline constexpr int kWindowTokens = 64;
// With fewer nothing would be sealed.
inline constexpr int kPromptTokensMin = kSinkTokens + kWindowTokens + kBlockTokens;

struct PromptLayout {
  int tokens = 0;
  std::vector<int> segments;  // Tokens of each, from the sinks on.

  int sealed_tokens() const {
    return (tokens - kSinkTokens - kWindowTokens) / kBlockTokens * kBlockTokens;
  }
  int sealed_end() const { return kSinkTokens + sealed_tokens(); }
  // What sinks and tail take: their extents hold whole blocks but for the sinks'.
  int exact_slots() const {
    return kSinkTokens + (tokens - sealed_end() + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  }
};

// `tokens` >= kPromptTokensMin.
inline PromptLayout LayoutOfPrompt(int tokens) {
  PromptLayout layout;
  layout.tokens = tokens;
  for (int left = layout.sealed_tokens(); left > 0; left -= kSegmentTokensMax) {
    layout.segments.push_back(std::min(left, kSegmentTokensMax));
  }
  return layout;
}

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_PROMPT_LAYOUT_H_
