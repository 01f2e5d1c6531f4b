// Thread blocks that run together and write to each other's shared memory.
//
// What a block writes to another (or to itself) counts towards a barrier of the receiver, an
// mbarrier that was told how many bytes to expect: nobody waits for anything but the bytes that it
// needs, and no fence is involved. A block may end when it has received all that others send it.
//
// NVIDIA, PTX ISA 9.0: barrier.cluster, mapa, st.async, mbarrier.
#ifndef KVDEPOT_GPU_CLUSTER_CUH_
#define KVDEPOT_GPU_CLUSTER_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"

namespace kvdepot::cluster {

using ptx::SharedAddress;

// This block's dynamic shared memory.
__device__ __forceinline__ std::byte* DynamicShared() {
  extern __shared__ __align__(128) std::byte bytes[];
  return bytes;
}

// Number of this block in its cluster.
__device__ __forceinline__ uint32_t Rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Blocks in the cluster, as launched.
__device__ __forceinline__ uint32_t Size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
}

// One thread makes `barrier`, to be passed once `bytes` have been received.
__device__ __forceinline__ void MakeBarrier(uint64_t* barrier, uint32_t bytes) {
  const uint32_t address = SharedAddress(barrier);
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], 1;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(address),
      "r"(bytes)
      : "memory");
}
// After MakeBarrier, by the same thread: others see the barriers after they have passed Start.
__device__ __forceinline__ void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// All threads of all blocks that have not ended call Arrive, then Wait, once: from then on blocks
// write to each other.
__device__ __forceinline__ void ArriveAtStart() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void WaitForStart() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Returns when the bytes that `barrier` expects are there, and visible.
__device__ __forceinline__ void WaitFor(uint64_t* barrier) {
  // A thread sleeps until the barrier is passed, for so many nanoseconds at most; without them it
  // would ask again so often that it took issue slots from working warps.
  constexpr uint32_t kSleepMax = 10'000'000;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "RECEIVE:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0, %1;\n"
      "@!done bra RECEIVE;\n"
      "}\n" ::"r"(SharedAddress(barrier)),
      "r"(kSleepMax)
      : "memory");
}

// Writes 4 bytes, or 8 aligned to 8, to block `rank`: where `to` and `barrier` are in this block's
// shared memory.
__device__ __forceinline__ void Send(float* to, float value, uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote, remote_barrier;\n"
      "mapa.shared::cluster.u32 remote, %0, %3;\n"
      "mapa.shared::cluster.u32 remote_barrier, %2, %3;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [remote], %1, [remote_barrier];\n"
      "}\n" ::"r"(SharedAddress(to)),
      "r"(__float_as_uint(value)), "r"(SharedAddress(barrier)), "r"(rank)
      : "memory");
}
__device__ __forceinline__ void Send(uint32_t* to, uint32_t value, uint64_t* barrier,
                                     uint32_t rank) {
  Send(reinterpret_cast<float*>(to), __uint_as_float(value), barrier, rank);
}
__device__ __forceinline__ void Send(float2* to, float2 value, uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote, remote_barrier;\n"
      "mapa.shared::cluster.u32 remote, %0, %4;\n"
      "mapa.shared::cluster.u32 remote_barrier, %3, %4;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [remote], {%1, %2}, "
      "[remote_barrier];\n"
      "}\n" ::"r"(SharedAddress(to)),
      "r"(__float_as_uint(value.x)), "r"(__float_as_uint(value.y)), "r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}

}  // namespace kvdepot::cluster

#endif  // KVDEPOT_GPU_CLUSTER_CUH_
