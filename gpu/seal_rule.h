// When tokens of a layer are sealed: a function of the history of appends alone, never of timing,
// chunking or memory, so that a repeated history gives the same segments and the same outputs.
//
// The rule counts a layer's *undecided* tokens: those behind the sinks and behind every segment
// decided so far. A decided segment may still wait for its encoding; the rule does not care.
#ifndef KVDEPOT_GPU_SEAL_RULE_H_
#define KVDEPOT_GPU_SEAL_RULE_H_

#include <cstdint>
#include <vector>

#include "gpu/shape.h"

namespace kvdepot {

// All in tokens, multiples of kBlockTokens but for prompt_tokens_min. A daemon's options may have
// other values.
struct SealRule {
  int window_tokens = 64;
  int decode_seal_tokens = 256;
  int prompt_tokens_min = 256;
  int segment_tokens_max = kSegmentTokensMax;
};

// Token counts of the segments that are decided now, oldest first, each a whole number of blocks.
using DecidedSegments = std::vector<int>;

// While an addition goes on that has stored `addition_tokens` so far: a prompt's full segments that
// leave the window. They are the first ones that DecideAtEnd would decide, whatever the addition
// still brings.
DecidedSegments DecideDuringAddition(const SealRule& rule, uint64_t undecided_tokens,
                                     uint64_t addition_tokens);

// When an addition of `addition_tokens` (all that it stored in this layer) has ended. A prompt is
// sealed up to the window in segments of segment_tokens_max, the last one shorter; less is sealed
// decode_seal_tokens at a time, once the layer has a window and as many more.
DecidedSegments DecideAtEnd(const SealRule& rule, uint64_t undecided_tokens,
                            uint64_t addition_tokens);

// Every whole block that leaves the window: the explicit call for a session that will rest.
DecidedSegments DecideToWindow(const SealRule& rule, uint64_t undecided_tokens);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEAL_RULE_H_
