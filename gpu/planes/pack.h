// Codes of one block into the bit places of a record, and back (gpu/FORMAT.md, "Record"). No value
// arithmetic.
#ifndef KVDEPOT_GPU_PLANES_PACK_H_
#define KVDEPOT_GPU_PLANES_PACK_H_

#include <cstddef>
#include <cstdint>

#include "gpu/calibration.h"
#include "gpu/planes/pattern.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

// fp16 bits of stored scales and centres, in original channel order, into a table of K or V.
void WriteTable(int head_dim, const TensorLayout& layout, bool is_key, const uint16_t* stored_scale,
                const uint16_t* centre, std::byte* table);

// 64 token scale codes into a record.
void WriteTokenScales(const uint8_t* codes, bool is_key, std::byte* record);

// codes[channel][token], channels in original order, into the groups of K or V at `planes`.
void PackBlock(const Pattern& pattern, const TensorLayout& layout, bool is_key,
               const uint8_t (*codes)[kBlockTokens], std::byte* planes);

// The inverse: codes[place][token] of the groups that store anything.
void UnpackBlock(const Pattern& pattern, bool is_key, const std::byte* planes,
                 uint8_t (*codes)[kBlockTokens]);

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_PACK_H_
