// How many bytes a session takes, from its shape and its number of tokens: no daemon is asked.
//
// The arithmetic is the daemon's own (gpu/seal_rule.h, SegmentBytes, gpu/slab_pool.h), with the
// defaults of its options. What is computed is a session without second moments of queries, for
// which its tokens have been sealed as far as they are due.
#ifndef KVDEPOT_CLIENT_SESSION_SIZE_H_
#define KVDEPOT_CLIENT_SESSION_SIZE_H_

#include <cstdint>
#include <map>
#include <vector>

#include "gpu/packkv/options.h"
#include "gpu/shape.h"

namespace kvdepot {

// Layers that are alike. Query heads take no bytes.
struct LayerGroup {
  uint64_t layers = 0;
  LayerShape shape;
};

struct SessionShape {
  std::vector<LayerGroup> groups;
  DType dtype = DType::kBf16;
};

// One prompt, then tokens one by one.
struct TokenHistory {
  uint64_t prompt_tokens = 0;
  uint64_t decoded_tokens = 0;
};

// With `planes` and without a calibration of its model, which would spread about as many bits over
// heads in another way.
struct StorageChoice {
  Codec codec = Codec::kPlanes;
  Profile profile = Profile::kCompact;  // Of planes.
  packkv::Options packkv;               // Of packkv.
};

// Extents by their size in a slab: how many of each.
using ExtentCounts = std::map<uint64_t, uint64_t>;

struct SessionSize {
  // What Session.stored_bytes and Session.logical_bytes say. With `packkv` stored_bytes is at most
  // this; else it is exactly this, unless values leave the codec's range and a segment becomes raw.
  uint64_t stored_bytes = 0;
  uint64_t logical_bytes = 0;
  // Of all layers without a sliding window: one more token of a prompt, once a whole segment with
  // it is sealed. At most so many with `packkv`.
  double token_bytes = 0;
  ExtentCounts sealed_extents;
  ExtentCounts exact_extents;
};

// Shapes are of the ranges that LayerShape of the contract has; there is one token at least.
SessionSize SizeOfSession(const SessionShape& shape, const TokenHistory& history,
                          const StorageChoice& choice);

// How many such sessions of one tenant, filled one after the other, a budget holds at least on a
// GPU, where slabs count: those of sealed and of exact tokens apart, each with less room left than
// its largest extent takes. (On the CPU only stored_bytes count.)
uint64_t SessionsThatFit(const SessionSize& size, uint64_t budget_bytes);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_SESSION_SIZE_H_
