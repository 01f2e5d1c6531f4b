#include "gpu/raw/finite_cuda.h"

namespace kvdepot::raw {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kThreadBlocksMax = 1056;  // eight a multiprocessor

__global__ void SetFirst(uint64_t* first, uint64_t value) { *first = value; }

// Whether bits `exponent` of the lower or upper half are all set; fp32 has one value a word.
__device__ __forceinline__ bool HasNonFinite(uint32_t word, uint32_t exponent) {
  if (exponent == 0x7F800000u) return (word & exponent) == exponent;
  const uint32_t upper = exponent << 16;
  return (word & exponent) == exponent || (word & upper) == upper;
}

__global__ void __launch_bounds__(kThreads)
    FindKernel(const std::byte* values, uint64_t count, uint32_t value_bytes, uint32_t exponent,
               uint64_t* first) {
  const uint32_t per_word = 16 / value_bytes;
  const uint64_t words = (count + per_word - 1) / per_word;
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x; i < words;
       i += step) {
    const uint64_t begin = i * per_word;
    if (begin + per_word <= count) {
      const uint4 word = reinterpret_cast<const uint4*>(values)[i];
      if (!HasNonFinite(word.x, exponent) && !HasNonFinite(word.y, exponent) &&
          !HasNonFinite(word.z, exponent) && !HasNonFinite(word.w, exponent)) {
        continue;
      }
    }
    // One of these, or the array's end: value by value.
    for (uint64_t v = begin; v < begin + per_word && v < count; ++v) {
      const uint32_t bits = value_bytes == 4 ? reinterpret_cast<const uint32_t*>(values)[v]
                                             : reinterpret_cast<const uint16_t*>(values)[v];
      if ((bits & exponent) != exponent) continue;
      atomicMin(reinterpret_cast<unsigned long long*>(first), v);
      return;  // This thread's other values come later.
    }
  }
}

// A block a run.
__global__ void __launch_bounds__(kThreads)
    FindRunKernel(const FiniteRun* runs, uint32_t exponent, uint64_t* first) {
  const FiniteRun run = runs[blockIdx.x];
  bool found = false;
  for (uint32_t tensor = 0; tensor < run.tensors; ++tensor) {
    const uint4* const words =
        reinterpret_cast<const uint4*>(run.values + tensor * run.distance_bytes);
    for (uint32_t i = threadIdx.x; i < run.tensor_bytes / 16; i += kThreads) {
      const uint4 word = words[i];
      found = found || HasNonFinite(word.x, exponent) || HasNonFinite(word.y, exponent) ||
              HasNonFinite(word.z, exponent) || HasNonFinite(word.w, exponent);
    }
  }
  if (__syncthreads_or(found ? 1 : 0) != 0 && threadIdx.x == 0)
    atomicMin(reinterpret_cast<unsigned long long*>(first),
              static_cast<unsigned long long>(blockIdx.x));
}

uint32_t ExponentOf(DType dtype) {
  return dtype == DType::kFp32 ? 0x7F800000u : dtype == DType::kBf16 ? 0x7F80u : 0x7C00u;
}

}  // namespace

cudaError_t FindNonFinite(const std::byte* values, DType dtype, size_t count, uint64_t* first,
                          cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.stream = stream;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, SetFirst, first, static_cast<uint64_t>(count));
  if (error != cudaSuccess || count == 0) return error;
  const uint32_t value_bytes = static_cast<uint32_t>(DTypeBytes(dtype));
  const uint64_t thread_blocks = (count * value_bytes / 16 + kThreads) / kThreads;
  config.gridDim = dim3(
      static_cast<unsigned>(thread_blocks < kThreadBlocksMax ? thread_blocks : kThreadBlocksMax));
  config.blockDim = dim3(kThreads);
  return cudaLaunchKernelEx(&config, FindKernel, values, static_cast<uint64_t>(count), value_bytes,
                            ExponentOf(dtype), first);
}

cudaError_t FindNonFiniteRun(const FiniteRun* runs, DType dtype, size_t count, uint64_t* first,
                             cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.stream = stream;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, SetFirst, first, static_cast<uint64_t>(count));
  if (error != cudaSuccess) return error;
  config.gridDim = dim3(static_cast<unsigned>(count));
  config.blockDim = dim3(kThreads);
  return cudaLaunchKernelEx(&config, FindRunKernel, runs, ExponentOf(dtype), first);
}

}  // namespace kvdepot::raw
