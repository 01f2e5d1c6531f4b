// What a sliding window hides.
#ifndef KVDEPOT_GPU_SLIDING_WINDOW_H_
#define KVDEPOT_GPU_SLIDING_WINDOW_H_

#include <cstdint>

#include "gpu/shape.h"

namespace kvdepot {

// First position that a query at `position` sees.
constexpr uint64_t FirstVisible(const LayerShape& shape, uint64_t position) {
  const uint64_t window = static_cast<uint64_t>(shape.sliding_window);
  return window > 0 && position >= window ? position - window + 1 : 0;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SLIDING_WINDOW_H_
