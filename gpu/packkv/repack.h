// The order in which the tokens of a block are packed, so that those of a pack are alike.
#ifndef KVDEPOT_GPU_PACKKV_REPACK_H_
#define KVDEPOT_GPU_PACKKV_REPACK_H_

#include <array>
#include <cstdint>

#include "gpu/packkv/options.h"
#include "gpu/packkv/quantize.h"

namespace kvdepot::packkv {

// Entry i is the token at place i. One order for K and V of all heads: attention is a sum over
// tokens, which each keep their scores beside their values.
using TokenOrder = std::array<uint8_t, kBlockTokens>;

// Total orders: where tokens are alike the one with the smaller index comes first.
TokenOrder OrderOf(Repacking repacking, int pack_tokens, const QuantizedBlock& k,
                   const QuantizedBlock& v);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_REPACK_H_
