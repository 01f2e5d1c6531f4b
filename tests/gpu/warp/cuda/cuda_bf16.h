// In the place of CUDA's header for device code under test (cuda_language.h), which needs nothing.
#ifndef KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_BF16_H_
#define KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_BF16_H_
#endif  // KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_BF16_H_
