// Thread blocks that run together and read each other's shared memory.
//
// NVIDIA, PTX ISA 9.0: barrier.cluster, mapa, ld.shared::cluster.
#ifndef KVDEPOT_GPU_CLUSTER_CUH_
#define KVDEPOT_GPU_CLUSTER_CUH_

#include <cstddef>
#include <cstdint>

namespace kvdepot::cluster {

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

// All threads of all blocks of the cluster that have not ended call Arrive, then Wait; what they
// wrote before Arrive is seen after Wait.
__device__ __forceinline__ void Arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
__device__ __forceinline__ void Wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Block `rank`'s value of what `local` is in this block's shared memory. That block has not ended.
__device__ __forceinline__ uint32_t LoadRemote(const uint32_t* local, uint32_t rank) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  uint32_t value;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.u32 %0, [remote];\n"
      "}\n"
      : "=r"(value)
      : "r"(address), "r"(rank)
      : "memory");
  return value;
}
__device__ __forceinline__ float LoadRemote(const float* local, uint32_t rank) {
  return __uint_as_float(LoadRemote(reinterpret_cast<const uint32_t*>(local), rank));
}

}  // namespace kvdepot::cluster

#endif  // KVDEPOT_GPU_CLUSTER_CUH_
