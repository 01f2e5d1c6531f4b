// Division by a number that is known before the launch.
#ifndef KVDEPOT_GPU_DIVIDER_CUH_
#define KVDEPOT_GPU_DIVIDER_CUH_

#include <cstdint>

namespace kvdepot {

// Division of numbers below 2^31 by a number that the launch fixes: a multiplication by
// ceil(2^(32 + shift) / divisor), Granlund and Montgomery 1994.
struct Divider {
  uint32_t divisor = 1;
  uint32_t multiplier = 0;  // 0: the divisor is 1
  uint32_t shift = 0;

  static __host__ Divider By(uint32_t divisor) {
    Divider result;
    result.divisor = divisor;
    if (divisor == 1) return result;
    while (1u << result.shift < divisor) ++result.shift;
    --result.shift;
    result.multiplier =
        static_cast<uint32_t>(((1ull << (32 + result.shift)) + divisor - 1) / divisor);
    return result;
  }
  __device__ uint32_t Of(uint32_t number) const {
    return multiplier == 0 ? number : __umulhi(number, multiplier) >> shift;
  }
  __device__ uint32_t Rest(uint32_t number) const { return number - Of(number) * divisor; }
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_DIVIDER_CUH_
