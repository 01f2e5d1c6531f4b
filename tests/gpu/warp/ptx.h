// gpu/cuda_ptx.cuh for lanes.h: the same functions, as the PTX ISA says what the instructions do.
// Takes that header's place where it is included before it.
//
// A bulk copy destroys what was at its target at once, and happens when the first lane waits for
// it: who reads too early or too late reads neither the old nor the new bytes.
#ifndef KVDEPOT_GPU_CUDA_PTX_CUH_
#define KVDEPOT_GPU_CUDA_PTX_CUH_

#include <cmath>
#include <cstdint>

#include "tests/gpu/warp/cuda_language.h"

namespace kvdepot {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Not lane 0's, as there: only what all lanes hold alike may come here.
uint32_t Uniform(uint32_t value);

float MaxOfWarp(float value);
float SumOfWarp(float value);

template <class T>
T SumOverG(T value) {
  for (int mask = 4; mask < 32; mask *= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}
float MaxOverG(float value);

}  // namespace kvdepot

namespace kvdepot::ptx {

// A barrier's word counts its phases; of copies of what one arrival says, as there.
void BarrierInit(uint64_t* barrier);
inline void FenceBarrierInit() {}
void BarrierWait(uint64_t* barrier, uint32_t parity);
void ExpectBytes(uint64_t* barrier, uint32_t bytes);
void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
              uint64_t cache_policy);
inline void BulkLoad(void* shared, const void* global, uint32_t bytes, uint64_t* barrier,
                     uint64_t cache_policy) {
  ExpectBytes(barrier, bytes);
  BulkCopy(shared, global, bytes, barrier, cache_policy);
}
// Phases whose copies nobody has waited for.
int PhasesUnderWay();
inline uint64_t EvictFirst() { return 0; }
inline void PrefetchL2(const void*) {}

void MmaSigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
               uint32_t b1);
void MmaUnsigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1);
inline uint32_t SelectBits(uint32_t mask, uint32_t first, uint32_t second) {
  return (mask & first) | (~mask & second);
}
uint32_t Transpose8x8(uint32_t rows);
void AddFromLanesBefore(uint32_t& sum, int distance, int width);

float Exp2(float x);

}  // namespace kvdepot::ptx

#endif  // KVDEPOT_GPU_CUDA_PTX_CUH_
