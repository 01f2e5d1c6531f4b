// The device code of `packkv`, for lanes of tests/gpu/warp: whoever includes this may run it.
#ifndef KVDEPOT_TESTS_GPU_PACKKV_DEVICE_CODE_H_
#define KVDEPOT_TESTS_GPU_PACKKV_DEVICE_CODE_H_

// First, in the place of gpu/cuda_ptx.cuh.
#include "tests/gpu/warp/ptx.h"
// clang-format off
#include "gpu/packkv/attend_range.cuh"
#include "gpu/packkv/decode_run.cuh"
#include "gpu/packkv/products.cuh"
#include "gpu/packkv/round.cuh"
// clang-format on

#endif  // KVDEPOT_TESTS_GPU_PACKKV_DEVICE_CODE_H_
