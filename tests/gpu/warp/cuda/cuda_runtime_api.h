// In the place of CUDA's header for device code under test (cuda_language.h): names that headers
// beside it mention.
#ifndef KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_RUNTIME_API_H_
#define KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_RUNTIME_API_H_

enum cudaError_t : int;
using cudaStream_t = struct CUstream_st*;

#endif  // KVDEPOT_TESTS_GPU_WARP_CUDA_CUDA_RUNTIME_API_H_
