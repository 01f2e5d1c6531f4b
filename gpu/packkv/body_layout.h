// Where the parts of a `packkv` body begin (gpu/FORMAT.md, "packkv").
#ifndef KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_
#define KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "gpu/packkv/body.h"

namespace kvdepot::packkv {

// Of tiles, and what the directory counts in.
inline constexpr size_t kUnitBytes = 16;

// An entry of the directory: where the tile of K and that of V begin, in units from the body's
// begin, and how many units each of their rounds has.
constexpr size_t EntryBytes(int pack_tokens) {
  return 2 * sizeof(uint32_t) +
         2 * sizeof(uint16_t) * static_cast<size_t>(kBlockTokens / pack_tokens);
}

// In bytes from its first.
struct BodyLayout {
  size_t kv_heads;
  size_t head_dim;
  size_t blocks;
  int pack_tokens;
  bool normalized;

  size_t channels_bytes() const {
    return normalized ? 4 * kv_heads * head_dim * sizeof(uint16_t) : 0;
  }
  size_t step_tables() const { return normalized ? kv_heads : 1; }
  size_t table_bytes() const { return step_tables() * sizeof(StepTable) + kBlockTokens; }
  size_t tables_at() const { return sizeof(BodyHeader) + channels_bytes(); }
  size_t directory_at() const { return tables_at() + blocks * table_bytes(); }
  size_t tiles_at() const {
    const size_t end = directory_at() + blocks * kv_heads * EntryBytes(pack_tokens);
    return (end + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
  }
};

constexpr BodyLayout BodyLayoutOf(int kv_heads, int head_dim, int blocks, int pack_tokens,
                                  bool normalized) {
  return {static_cast<size_t>(kv_heads), static_cast<size_t>(head_dim), static_cast<size_t>(blocks),
          pack_tokens, normalized};
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_
