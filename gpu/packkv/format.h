// The layout of a `packkv` body, as it lies in memory (gpu/FORMAT.md, "packkv"); the same on host
// and device.
#ifndef KVDEPOT_GPU_PACKKV_FORMAT_H_
#define KVDEPOT_GPU_PACKKV_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "gpu/host_device.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {

// Of tiles, and what the directory counts in.
inline constexpr size_t kUnitBytes = 16;

// What a step belongs to, and whether values are normalised.
enum class Form : uint8_t {
  kTokens = 0,      // a step a token; values as they are
  kNormalized = 1,  // a step a token and head; channels centred and scaled
};

struct BodyHeader {
  float k_relative_scale;
  float v_relative_scale;
  uint8_t pack_tokens;
  uint8_t repacking;
  // Of codes, and so of minima.
  uint8_t k_bits;
  uint8_t v_bits;
  uint8_t form;
  uint8_t zero[51];
};
static_assert(sizeof(BodyHeader) == 64, "gpu/FORMAT.md");

// Of a block's tokens, by place; those of all heads, or with kNormalized of one.
struct StepTable {
  uint16_t k_scale[kBlockTokens];  // bf16
  uint16_t v_scale[kBlockTokens];
  int16_t k_zero[kBlockTokens];
  int16_t v_zero[kBlockTokens];
};
static_assert(sizeof(StepTable) == 512, "gpu/FORMAT.md");

// A block's with kTokens: a StepTable, and the order behind it.
struct TokenTable {
  uint16_t k_scale[kBlockTokens];  // bf16
  uint16_t v_scale[kBlockTokens];
  int16_t k_zero[kBlockTokens];
  int16_t v_zero[kBlockTokens];
  uint8_t order[kBlockTokens];  // the token at each place
};
static_assert(sizeof(TokenTable) == 576, "gpu/FORMAT.md");

// An entry of the directory: where the tile of K and that of V begin, in units from the body's
// begin, and how many units each of their rounds has.
KVDEPOT_HOST_DEVICE constexpr size_t EntryBytes(int pack_tokens) {
  return 2 * sizeof(uint32_t) +
         2 * sizeof(uint16_t) * static_cast<size_t>(kBlockTokens / pack_tokens);
}

// Where an entry says the rounds' units, K's or V's.
KVDEPOT_HOST_DEVICE constexpr size_t EntryUnitsAt(bool is_key, int pack_tokens) {
  const size_t before = is_key ? 0 : static_cast<size_t>(kBlockTokens / pack_tokens);
  return 2 * sizeof(uint32_t) + sizeof(uint16_t) * before;
}

// Of bodies with kTokens.
KVDEPOT_HOST_DEVICE constexpr size_t TokenTableAt(int block) {
  return sizeof(BodyHeader) + static_cast<size_t>(block) * sizeof(TokenTable);
}

KVDEPOT_HOST_DEVICE constexpr size_t DirectoryAt(int blocks) {
  return sizeof(BodyHeader) + static_cast<size_t>(blocks) * sizeof(TokenTable);
}

KVDEPOT_HOST_DEVICE constexpr size_t TilesAt(int kv_heads, int blocks, int pack_tokens) {
  const size_t end = DirectoryAt(blocks) + static_cast<size_t>(blocks) *
                                               static_cast<size_t>(kv_heads) *
                                               EntryBytes(pack_tokens);
  return (end + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
}

// What the kernels that attend and decode are built for: packs of so many tokens, codes of at most
// so many bits.
inline constexpr int kPackTokens = 16;
inline constexpr int kNibbleCodeBits = 4;
// Of products.cuh's operand of weights.
inline constexpr uint32_t kValueOperandBytes = 3072;

// Bits that hold a width, 0..code_bits.
KVDEPOT_HOST_DEVICE constexpr int WidthCodeBits(int code_bits) {
  int bits = 0;
  while (code_bits >> bits != 0) ++bits;
  return bits;
}

// Of a round: minima and widths, up to whole units; then come the parts.
KVDEPOT_HOST_DEVICE constexpr size_t RoundHeaderBytes(int head_dim, int code_bits) {
  const size_t channels = static_cast<size_t>(head_dim);
  const size_t bytes = channels * static_cast<size_t>(code_bits) / 8 +
                       channels * static_cast<size_t>(WidthCodeBits(code_bits)) / 8;
  return (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
}

// Where the bits of token `token` of a pack are in a part of `bits` a code, 1 or 2. In packs of 16
// a shift and a mask bring a part of 1 bit to the places of 2.
KVDEPOT_HOST_DEVICE constexpr int BitOf(int pack_tokens, int bits, int token) {
  if (pack_tokens == 16 && bits == 1) return 2 * (token % 8) + token / 8;
  return bits * token;
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_FORMAT_H_
