// `planes` on the CPU: from records back to values.
#ifndef KVDEPOT_GPU_PLANES_DECODE_CPU_H_
#define KVDEPOT_GPU_PLANES_DECODE_CPU_H_

#include <cstdint>

#include "gpu/planes/part_view.h"

namespace kvdepot::planes {

// Values of one block: values[token * row_stride + channel] for 64 tokens, channels in original
// order. `order` maps places to channels.
void DecodeBlock(const TensorView& tensor, const uint8_t* order, int block, float* values,
                 size_t row_stride);

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_DECODE_CPU_H_
