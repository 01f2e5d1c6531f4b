// The unit in which a row's weights become integers (products.cuh).
#ifndef KVDEPOT_GPU_PACKKV_VALUE_UNIT_CUH_
#define KVDEPOT_GPU_PACKKV_VALUE_UNIT_CUH_

#include <cstdint>

#include "gpu/packkv/products.cuh"

namespace kvdepot::packkv {

// Sums that were made in a unit are to be taken before it grows. Lane 4 g + t: of row t.
class ValueUnit {
 public:
  __device__ bool Holds(float largest) const { return largest <= largest_; }
  // To the power of two that `largest`, of the row's weights, needs.
  __device__ __forceinline__ void Grow(float largest) {
    const uint32_t power = (__float_as_uint(largest) + 0x007FFFFFu) & 0x7F800000u;
    largest_ = fmaxf(largest_, __uint_as_float(power));
  }
  // Of a weight of 1: what it becomes, and what integers are to be multiplied with.
  __device__ float integer() const { return kWeightMax / largest_; }
  __device__ float weight() const { return largest_ / kWeightMax; }

 private:
  // 2^-100: below it everything is nothing beside a weight that counts.
  float largest_ = 7.8886091e-31f;
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_VALUE_UNIT_CUH_
