// What all kernels of an encoding are told, and what they tell each other in device memory.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_LAUNCH_CUH_
#define KVDEPOT_GPU_PACKKV_ENCODE_LAUNCH_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/packkv/format.h"
#include "gpu/packkv/options.h"
#include "gpu/segment_job.h"

namespace kvdepot::packkv {

// Of one block. Arrays of two are of K and V.
struct BlockSummary {
  uint32_t largest_code[2];
  uint32_t out_of_range;
};

struct EncodeLaunch {
  const SegmentJob* jobs;
  size_t header_bytes;
  int kv_heads;
  int head_dim;
  int block_count_max;
  float relative_scale[2];
  int code_bits_max[2];
  int pack_tokens;
  Repacking repacking;

  // [job]
  uint32_t* out_of_range;
  uint64_t* body_bytes;

  // The workspace, by block of the batch.
  BlockSummary* summaries;
  uint8_t* codes;        // [block][tile][token][channel]
  uint16_t* part_units;  // [block][tile][round]: a round's units but for its header

  // Places of the workspace for a job's block.
  __host__ __device__ size_t BlockOf(unsigned job, int block) const {
    return static_cast<size_t>(job) * static_cast<size_t>(block_count_max) +
           static_cast<size_t>(block);
  }
  // Of a block, as in an exact extent: K and V of each head.
  __host__ __device__ int tiles() const { return 2 * kv_heads; }
  __host__ __device__ int tile_values() const { return kBlockTokens * head_dim; }
  __host__ __device__ int rounds() const { return kBlockTokens / pack_tokens; }

  __device__ uint8_t* CodesOf(size_t block) const {
    return codes + block * static_cast<size_t>(tiles()) * static_cast<size_t>(tile_values());
  }
  __device__ uint16_t* PartUnitsOf(size_t block, int tile) const {
    return part_units + (block * static_cast<size_t>(tiles()) + static_cast<size_t>(tile)) *
                            static_cast<size_t>(rounds());
  }
  __device__ std::byte* BodyOf(const SegmentJob& job) const { return job.segment + header_bytes; }
};

__device__ __forceinline__ TokenTable* TokenTableOf(std::byte* body, int block) {
  return reinterpret_cast<TokenTable*>(body + TokenTableAt(block));
}

// Of the directory. Heads are counted over all blocks.
__device__ __forceinline__ std::byte* EntryOf(const EncodeLaunch& launch, std::byte* body,
                                              int blocks, int head) {
  return body + DirectoryAt(blocks) + static_cast<size_t>(head) * EntryBytes(launch.pack_tokens);
}

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_LAUNCH_CUH_
