// What becomes one sealed segment.
#ifndef KVDEPOT_GPU_SEAL_BLOCKS_H_
#define KVDEPOT_GPU_SEAL_BLOCKS_H_

#include <cstddef>

#include "absl/types/span.h"
#include "gpu/shape.h"

namespace kvdepot {

// Whole blocks that become one segment: exact extents of kBlockTokens tokens, in order, at most
// kSegmentTokensMax / kBlockTokens of them.
struct SealBlocks {
  LayerShape shape;
  DType dtype = DType::kBf16;
  absl::Span<const std::byte* const> blocks;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEAL_BLOCKS_H_
