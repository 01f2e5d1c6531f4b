// One value of a session's dtype, in host memory of any alignment, to and from fp32.
#ifndef KVDEPOT_GPU_SCALAR_H_
#define KVDEPOT_GPU_SCALAR_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot {

// Exact.
inline float LoadScalar(const std::byte* from, DType dtype) {
  if (dtype == DType::kFp32) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return dtype == DType::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}

// Rounds to nearest even.
inline void StoreScalar(float value, DType dtype, std::byte* to) {
  if (dtype == DType::kFp32) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const uint16_t bits = dtype == DType::kBf16 ? FloatToBf16(value) : FloatToFp16(value);
  std::memcpy(to, &bits, sizeof(bits));
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SCALAR_H_
