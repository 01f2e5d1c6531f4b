// Parts of rows on their way from the blocks that computed them to the warp that merges them.
//
// A part is the state of a query row over a block's share of its row. Its floats travel as words of
// 64 bits, the float and a one: a word is written and read as a whole, so whoever sees the one has
// the float, without a fence or a counter (like the LL protocol of NCCL). Who merges a part clears
// its words, which are zero again when the launch ends. Who merges waits for who sends: all blocks
// of a launch must be resident together.
#ifndef KVDEPOT_GPU_ATTEND_PARTS_CUH_
#define KVDEPOT_GPU_ATTEND_PARTS_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/cuda_ptx.cuh"

namespace kvdepot {

// Two neighbouring words.
struct TwoWords {
  ulonglong2 words = {0, 0};

  static __device__ __forceinline__ void Send(uint64_t* to, float first, float second) {
    constexpr uint64_t kSent = uint64_t{1} << 32;
    ptx::StoreWords(to, kSent | __float_as_uint(first), kSent | __float_as_uint(second));
  }
  static __device__ __forceinline__ void Clear(uint64_t* at) { ptx::StoreWords(at, 0, 0); }
  __device__ __forceinline__ void Load(const uint64_t* from) { words = ptx::LoadWords(from); }
  __device__ __forceinline__ bool arrived() const {
    return words.x >> 32 != 0 && words.y >> 32 != 0;
  }
  __device__ __forceinline__ float first() const {
    return __uint_as_float(static_cast<uint32_t>(words.x));
  }
  __device__ __forceinline__ float second() const {
    return __uint_as_float(static_cast<uint32_t>(words.y));
  }
};

// Places that one warp merges; parts are cut into slices of so many.
inline constexpr uint32_t kSlicePlaces = 32;

// [block][row that its range begins in, row that it ends in][query row][slice]: the slice's outputs
// by place, then the query row's reference and sum.
template <int kHeadDim>
struct Parts {
  static constexpr uint32_t kSlices = kHeadDim / kSlicePlaces;
  static constexpr uint32_t kSliceWords = kSlicePlaces + 2;
  static constexpr uint32_t kRowWords = kSlices * kSliceWords;

  uint64_t* words;

  // Of a tile of `rows` query rows. `from_before`: the row began in an earlier block.
  __device__ uint64_t* Of(uint32_t block, bool from_before, uint32_t rows, uint32_t row,
                          uint32_t slice) const {
    const uint32_t index = (2 * block + (from_before ? 0 : 1)) * rows + row;
    return words + static_cast<size_t>(index * kSlices + slice) * kSliceWords;
  }
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_PARTS_CUH_
