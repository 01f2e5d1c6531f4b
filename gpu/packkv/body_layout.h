// Where the parts of a `packkv` body of either form begin (gpu/FORMAT.md, "packkv").
#ifndef KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_
#define KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "gpu/packkv/format.h"

namespace kvdepot::packkv {

// In bytes from its first.
struct BodyLayout {
  size_t kv_heads;
  size_t head_dim;
  size_t blocks;
  int pack_tokens;
  bool normalized;

  constexpr size_t channels_bytes() const {
    return normalized ? 4 * kv_heads * head_dim * sizeof(uint16_t) : 0;
  }
  constexpr size_t step_tables() const { return normalized ? kv_heads : 1; }
  constexpr size_t table_bytes() const { return step_tables() * sizeof(StepTable) + kBlockTokens; }
  constexpr size_t tables_at() const { return sizeof(BodyHeader) + channels_bytes(); }
  constexpr size_t directory_at() const { return tables_at() + blocks * table_bytes(); }
  constexpr size_t tiles_at() const {
    const size_t end = directory_at() + blocks * kv_heads * EntryBytes(pack_tokens);
    return (end + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
  }
};

constexpr BodyLayout BodyLayoutOf(int kv_heads, int head_dim, int blocks, int pack_tokens,
                                  bool normalized) {
  return {static_cast<size_t>(kv_heads), static_cast<size_t>(head_dim), static_cast<size_t>(blocks),
          pack_tokens, normalized};
}

static_assert(BodyLayoutOf(3, 64, 5, 8, false).tiles_at() == TilesAt(3, 5, 8),
              "what kernels take for the layout of kTokens");

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_BODY_LAYOUT_H_
