// The instructions that kernels use and CUDA C++ has no name for.
//
// NVIDIA, PTX ISA 9.0: mbarrier, cp.async.bulk, mma, movmatrix, shfl, lop3, ex2.
#ifndef KVDEPOT_GPU_CUDA_PTX_CUH_
#define KVDEPOT_GPU_CUDA_PTX_CUH_

#include <cstdint>

namespace kvdepot {

// Of a warp, for instructions that all of its lanes execute together.
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// A value that all lanes hold alike, in a form that the compiler knows to be one: branches on it do
// not diverge, addresses from it are computed once a warp.
__device__ __forceinline__ uint32_t Uniform(uint32_t value) {
  return __shfl_sync(kAllLanes, value, 0);
}

__device__ __forceinline__ float MaxOfWarp(float value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}
__device__ __forceinline__ float SumOfWarp(float value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Sum, or maximum, over the lanes 4 g + t that share t: the same in all of them.
template <class T>
__device__ __forceinline__ T SumOverG(T value) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}
__device__ __forceinline__ float MaxOverG(float value) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, mask));
  return value;
}

}  // namespace kvdepot

namespace kvdepot::ptx {

__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// An mbarrier: one arrival and the bytes that it announced end a phase.
__device__ __forceinline__ void BarrierInit(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra WAIT;\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// The one arrival: the phase of `barrier` ends when copies of `bytes` in all are there.
__device__ __forceinline__ void ExpectBytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
// Copies `bytes` (a multiple of 16, not 0, both ends 16-byte aligned) to shared memory. Compressed
// bytes are read once: evicted first.
__device__ __forceinline__ void BulkCopy(void* shared, const void* global, uint32_t bytes,
                                         uint64_t* barrier, uint64_t cache_policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier)), "l"(cache_policy)
      : "memory");
}
// A phase of one copy.
__device__ __forceinline__ void BulkLoad(void* shared, const void* global, uint32_t bytes,
                                         uint64_t* barrier, uint64_t cache_policy) {
  ExpectBytes(barrier, bytes);
  BulkCopy(shared, global, bytes, barrier, cache_policy);
}
__device__ __forceinline__ uint64_t EvictFirst() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// D += A B, A 16x32 of u8, B 32x8 of s8 or u8, D 16x8 of s32.
__device__ __forceinline__ void MmaSigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void MmaUnsigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                            uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// D = A B.
__device__ __forceinline__ void MmaSignedFirst(int32_t (&d)[4], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}
__device__ __forceinline__ void MmaUnsignedFirst(int32_t (&d)[4], uint32_t a0, uint32_t a1,
                                                 uint32_t a2, uint32_t a3, uint32_t b0,
                                                 uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%10,%10,%10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}

// D += A B, A 16x16 and B 16x8 of bf16 or fp16, D 16x8 of fp32.
template <bool kIsBf16>
__device__ __forceinline__ void MmaFloat(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (kIsBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Of each bit `first` where `mask` is set, else `second`.
__device__ __forceinline__ uint32_t SelectBits(uint32_t mask, uint32_t first, uint32_t second) {
  uint32_t selected;
  asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(selected) : "r"(mask), "r"(first), "r"(second));
  return selected;
}

// Transposes an 8x8 matrix of 16-bit elements; lane 4 r + c holds elements 2 c and 2 c + 1 of row
// r.
__device__ __forceinline__ uint32_t Transpose8x8(uint32_t rows) {
  uint32_t columns;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

// Adds to `sum` that of the lane `distance` before, among `width` lanes (a power of two).
__device__ __forceinline__ void AddFromLanesBefore(uint32_t& sum, int distance, int width) {
  asm volatile(
      "{\n"
      ".reg .u32 other;\n"
      ".reg .pred is_there;\n"
      "shfl.sync.up.b32 other|is_there, %0, %1, %2, 0xFFFFFFFF;\n"
      "@is_there add.u32 %0, %0, other;\n"
      "}\n"
      : "+r"(sum)
      : "r"(distance), "r"((32 - width) << 8));
}

// Brings the line of `global` to the device's cache.
__device__ __forceinline__ void PrefetchL2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Two 64-bit words of device memory, each read and written as a whole, past this multiprocessor's
// cache. Nothing is said about the order of words.
__device__ __forceinline__ void StoreWords(uint64_t* to, uint64_t first, uint64_t second) {
  asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1,%2};" ::"l"(to), "l"(first), "l"(second)
               : "memory");
}
__device__ __forceinline__ ulonglong2 LoadWords(const uint64_t* from) {
  ulonglong2 words;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0,%1}, [%2];"
               : "=l"(words.x), "=l"(words.y)
               : "l"(from)
               : "memory");
  return words;
}

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace kvdepot::ptx

#endif  // KVDEPOT_GPU_CUDA_PTX_CUH_
