// `planes` on the CPU: from exact blocks to tables and records (gpu/FORMAT.md, "Arithmetic").
#ifndef KVDEPOT_GPU_PLANES_ENCODE_CPU_H_
#define KVDEPOT_GPU_PLANES_ENCODE_CPU_H_

#include <cstddef>

#include "absl/types/span.h"
#include "gpu/backend.h"
#include "gpu/calibration.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

// K or V of one head over whole blocks: block b is [64][head_dim] values of `dtype` at blocks[b] +
// offset.
struct TensorBlocks {
  DType dtype = DType::kBf16;
  int head_dim = 0;
  absl::Span<const std::byte* const> blocks;
  size_t offset = 0;
};

// K or V of head `head` of `source`.
TensorBlocks TensorBlocksOf(const SealBlocks& source, int head, bool is_key);

// Where the encoded tensor goes. Every byte that belongs to it is written.
struct TensorSink {
  bool is_key = true;
  std::byte* table = nullptr;
  std::byte* records = nullptr;
  size_t record_bytes = 0;
  size_t planes_offset = 0;  // of the tensor's first group inside a record
};

// False if the values leave the range of the format; what was written is then meaningless.
bool EncodeTensor(const TensorBlocks& source, const TensorLayout& layout, const TensorSink& sink);

// variance[c] of each channel about its stored centre, in original channel order.
void ChannelVariance(const TensorBlocks& source, float* variance);

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_CPU_H_
