// Finds the run of a list in which a unit lies. The whole warp takes part.
#ifndef KVDEPOT_GPU_UNIT_SEARCH_CUH_
#define KVDEPOT_GPU_UNIT_SEARCH_CUH_

#include <cstdint>

namespace kvdepot {

// Index of the last of `count` >= 1 runs whose unit_begin is at most `unit`.
template <class Run>
__device__ uint32_t RunAt(const Run* runs, uint32_t count, uint32_t unit, int lane) {
  uint32_t begin = 0;
  // 32 samples a step: two steps for a thousand runs.
  while (count > 1) {
    const uint32_t stride = (count + 31) / 32;
    const uint32_t at = lane * stride;
    const bool before = at < count && runs[begin + at].unit_begin <= unit;
    const uint32_t last = 31 - __clz(__ballot_sync(0xFFFFFFFFu, before) | 1u);
    begin += last * stride;
    count = min(stride, count - last * stride);
  }
  return begin;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_UNIT_SEARCH_CUH_
