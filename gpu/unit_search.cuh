// Finds the run of a list in which a unit lies. The whole warp takes part.
#ifndef KVDEPOT_GPU_UNIT_SEARCH_CUH_
#define KVDEPOT_GPU_UNIT_SEARCH_CUH_

#include <cstdint>

#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Index of the last of `count` >= 1 runs whose unit_begin is at most `unit`. Looks around `guess`
// first.
template <class Run>
__device__ uint32_t RunAt(const Run* runs, uint32_t count, uint32_t unit, uint32_t guess,
                          int lane) {
  uint32_t begin = guess > 16 ? min(guess - 16, count - 1) : 0;
  uint32_t stride = 1;
  for (bool around = true;; around = false) {
    const uint32_t at = begin + lane * stride;
    const uint32_t before = __ballot_sync(kAllLanes, at < count && runs[at].unit_begin <= unit);
    // Whole where a run on either side shows that none outside was meant.
    if (before != 0 && (before != kAllLanes || !around || begin + 32 >= count)) {
      begin += (31 - __clz(before)) * stride;
      if (stride == 1) return begin;
      count = min(count, begin + stride);
      stride = (stride + 31) / 32;
    } else {
      begin = 0;
      stride = (count + 31) / 32;
    }
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_UNIT_SEARCH_CUH_
