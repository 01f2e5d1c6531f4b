// Codes of a round, the unit in which `packkv` packs: one pack of tokens, all channels of one KV
// head, K or V. gpu/FORMAT.md, "packkv", has the bytes.
#ifndef KVDEPOT_GPU_PACKKV_ROUND_H_
#define KVDEPOT_GPU_PACKKV_ROUND_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/packkv/format.h"

namespace kvdepot::packkv {

// What is the same for all rounds of a segment's K, or V.
struct RoundShape {
  int pack_tokens = 16;
  int head_dim = 128;
  // Bits of a code, 0..8.
  int code_bits = 4;

  size_t code_count() const {
    return static_cast<size_t>(pack_tokens) * static_cast<size_t>(head_dim);
  }
};

// No round is larger.
size_t RoundBytesMax(const RoundShape& shape);

// Appends the round of `codes`, [token][channel], to `bytes`, a multiple of 16 bytes long.
void AppendRound(const RoundShape& shape, absl::Span<const uint8_t> codes,
                 std::vector<std::byte>* bytes);

// Sum of the widths of all channels' packs. `round` has a whole header. DATA_LOSS: a width is above
// code_bits.
absl::StatusOr<int> SumOfWidths(const RoundShape& shape, absl::Span<const std::byte> round);

// Length of the round that begins at `round`. DATA_LOSS: it does not end within `round`, or as
// SumOfWidths.
absl::StatusOr<size_t> RoundBytes(const RoundShape& shape, absl::Span<const std::byte> round);

// Codes of a round whose length is known to be right, [token][channel].
void ReadRound(const RoundShape& shape, const std::byte* round, absl::Span<uint8_t> codes);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ROUND_H_
