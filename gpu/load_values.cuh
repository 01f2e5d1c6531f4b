// Stored values as fp32, exactly, on the device. `row` is a row of kDType elements in shared or
// global memory, aligned to 16 bytes.
#ifndef KVDEPOT_GPU_LOAD_VALUES_CUH_
#define KVDEPOT_GPU_LOAD_VALUES_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot {

__device__ __forceinline__ float HalfToFloat(uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return Fp16ToFloat(bits);
#endif
}

// The two 16-bit values of a word, the lower one first.
template <DType kDType>
__device__ __forceinline__ float2 UnpackPair(uint32_t word) {
  if constexpr (kDType == DType::kBf16) {
    return make_float2(FloatFromBits(word << 16), FloatFromBits(word & 0xFFFF0000u));
  } else {
    return make_float2(HalfToFloat(static_cast<uint16_t>(word)),
                       HalfToFloat(static_cast<uint16_t>(word >> 16)));
  }
}

template <DType kDType>
__device__ __forceinline__ float LoadValue(const std::byte* row, int channel) {
  if constexpr (kDType == DType::kFp32) {
    return reinterpret_cast<const float*>(row)[channel];
  } else {
    const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[channel];
    if constexpr (kDType == DType::kBf16) return Bf16ToFloat(bits);
    return HalfToFloat(bits);
  }
}

// Channels 2 pair and 2 pair + 1.
template <DType kDType>
__device__ __forceinline__ float2 LoadPair(const std::byte* row, int pair) {
  if constexpr (kDType == DType::kFp32) {
    return reinterpret_cast<const float2*>(row)[pair];
  } else {
    return UnpackPair<kDType>(reinterpret_cast<const uint32_t*>(row)[pair]);
  }
}

// Channels 8 octet .. 8 octet + 7.
template <DType kDType>
__device__ __forceinline__ void LoadOctet(const std::byte* row, int octet, float (&values)[8]) {
  if constexpr (kDType == DType::kFp32) {
    const float4 low = reinterpret_cast<const float4*>(row)[2 * octet];
    const float4 high = reinterpret_cast<const float4*>(row)[2 * octet + 1];
    values[0] = low.x, values[1] = low.y, values[2] = low.z, values[3] = low.w;
    values[4] = high.x, values[5] = high.y, values[6] = high.z, values[7] = high.w;
  } else {
    const uint4 words = reinterpret_cast<const uint4*>(row)[octet];
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = UnpackPair<kDType>(word[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_LOAD_VALUES_CUH_
