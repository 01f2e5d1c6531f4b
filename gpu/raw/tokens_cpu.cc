#include "gpu/raw/tokens_cpu.h"

#include <cstring>

namespace kvdepot::raw {

void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                 int count, std::byte* extent, int capacity, int first_slot) {
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
  const size_t token_bytes = static_cast<size_t>(shape.kv_heads) * row_bytes;
  const size_t tensor_bytes = static_cast<size_t>(capacity) * row_bytes;
  for (int tensor = 0; tensor < 2 * shape.kv_heads; ++tensor) {
    const std::byte* source = (tensor % 2 == 0 ? tokens.k : tokens.v) +
                              static_cast<size_t>(tensor / 2) * row_bytes +
                              static_cast<size_t>(from) * token_bytes;
    std::byte* target = extent + static_cast<size_t>(tensor) * tensor_bytes +
                        static_cast<size_t>(first_slot) * row_bytes;
    for (int token = 0; token < count; ++token, source += token_bytes, target += row_bytes) {
      memcpy(target, source, row_bytes);
    }
  }
}

void EncodeSegment(const SealBlocks& source, std::byte* parts) {
  // A head's share of an exact extent is one raw record.
  const size_t record_bytes = ExactExtentBytes(source.shape, source.dtype, kBlockTokens) /
                              static_cast<size_t>(source.shape.kv_heads);
  for (size_t head = 0; head < static_cast<size_t>(source.shape.kv_heads); ++head) {
    for (const std::byte* block : source.blocks) {
      memcpy(parts, block + head * record_bytes, record_bytes);
      parts += record_bytes;
    }
  }
}

}  // namespace kvdepot::raw
