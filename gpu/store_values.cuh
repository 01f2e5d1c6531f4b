// fp32 values to stored ones on the device, rounded to nearest even (gpu/numeric.h).
#ifndef KVDEPOT_GPU_STORE_VALUES_CUH_
#define KVDEPOT_GPU_STORE_VALUES_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot {

// Two 16-bit values in a word, the first one low.
template <DType kDType>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  static_assert(kDType != DType::kFp32, "16 bits");
#if defined(__CUDA_ARCH__)
  uint32_t word;
  if constexpr (kDType == DType::kBf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
#else
  const auto convert = kDType == DType::kBf16 ? FloatToBf16 : FloatToFp16;
  return static_cast<uint32_t>(convert(low)) | static_cast<uint32_t>(convert(high)) << 16;
#endif
}

// Channels 8 octet .. 8 octet + 7 of a row of kDType elements, aligned to 16 bytes.
template <DType kDType>
__device__ __forceinline__ void StoreOctet(std::byte* row, int octet, const float (&values)[8]) {
  if constexpr (kDType == DType::kFp32) {
    float4* to = reinterpret_cast<float4*>(row) + 2 * octet;
    to[0] = make_float4(values[0], values[1], values[2], values[3]);
    to[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    reinterpret_cast<uint4*>(row)[octet] =
        make_uint4(PackPair<kDType>(values[0], values[1]), PackPair<kDType>(values[2], values[3]),
                   PackPair<kDType>(values[4], values[5]), PackPair<kDType>(values[6], values[7]));
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_STORE_VALUES_CUH_
