// In the place of CUDA's header for device code under test (cuda_language.h).
#ifndef KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_FP16_H_
#define KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_FP16_H_

#include "gpu/numeric.h"
#include "tests/gpu/warp/cuda_language.h"

struct alignas(4) __half2 {
  uint16_t x, y;
};
inline float2 __half22float2(__half2 halves) {
  return {kvdepot::Fp16ToFloat(halves.x), kvdepot::Fp16ToFloat(halves.y)};
}

#endif  // KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_FP16_H_
