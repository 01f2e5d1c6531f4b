// Exact tokens on the CPU: between client order [token][head][channel] and extents, and into raw
// segments.
#ifndef KVDEPOT_GPU_RAW_TOKENS_CPU_H_
#define KVDEPOT_GPU_RAW_TOKENS_CPU_H_

#include <cstddef>

#include "gpu/backend.h"
#include "gpu/shape.h"

namespace kvdepot::raw {

// As Backend::WriteTokens.
void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                 int count, std::byte* extent, int capacity, int first_slot);

// Writes the parts of a raw segment, everything after its header.
void EncodeSegment(const SealBlocks& source, std::byte* parts);

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_TOKENS_CPU_H_
