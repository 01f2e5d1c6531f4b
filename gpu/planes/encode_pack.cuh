// The encoder's last step on the device: values to codes in the bit places of a record. Reads the
// tile in shared memory by place, so that a thread's codes share words.
#ifndef KVDEPOT_GPU_PLANES_ENCODE_PACK_CUH_
#define KVDEPOT_GPU_PLANES_ENCODE_PACK_CUH_

#include "gpu/device_head.h"
#include "gpu/planes/codec.h"
#include "gpu/planes/encode_tile.cuh"
#include "gpu/planes/format.h"

namespace kvdepot::planes {

// Words of a record from the codes of four chunks x: chunk[x] holds in each nibble the code of one
// field, right-aligned. store(j, word) for j < width.
template <class Store>
__device__ __forceinline__ void StoreFields(int width, const uint32_t (&chunk)[4],
                                            const Store& store) {
  constexpr uint32_t kNibbleLow = 0x11111111u;
  switch (width) {
    case 4:
#pragma unroll
      for (int j = 0; j < 4; ++j) store(j, chunk[j]);
      break;
    case 3:
#pragma unroll
      for (int j = 0; j < 3; ++j) store(j, chunk[j] << 1 | (chunk[3] >> j & kNibbleLow));
      break;
    case 2:
      store(0, chunk[0] << 2 | chunk[1]);
      store(1, chunk[2] << 2 | chunk[3]);
      break;
    default:
      store(0, chunk[0] << 3 | chunk[1] << 2 | chunk[2] << 1 | chunk[3]);
  }
}

// What quantising needs of kPlaces places.
template <class T, int kPlaces>
struct PlaceConstants {
  int channel[kPlaces];
  float centre[kPlaces];
  Reciprocal step[kPlaces];
  LevelConstants levels;
  // Codes are added up shifted, eight to a word, the rounder's bits with them; this takes those
  // off.
  uint32_t word_start;

  __device__ PlaceConstants(const typename T::Shared& shared, int first_place, int stride,
                            int width) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      const int place = first_place + stride * i;
      channel[i] = shared.order[place];
      centre[i] = shared.centre[channel[i]];
      step[i] = {shared.deviation_or_step[place], shared.inverse_or_rest[place]};
    }
    levels = LevelConstantsOf(width);
    word_start = 0u - FloatBits(levels.rounder) * 0x11111111u;
  }

  // RoundedCode of place i.
  __device__ __forceinline__ uint32_t CodeBits(const std::byte* row, int i,
                                               const Reciprocal& token_scale) const {
    return RoundedCode(LoadValue<T::kDType>(row, channel[i]), centre[i], token_scale, step[i],
                       levels);
  }
};

// K of one block. Thread `index` (0 .. head_dim / 2 - 1): four places, half of the tokens.
template <class T>
__device__ __forceinline__ void PackKeyBlock(const typename T::Shared& shared, int block, int index,
                                             uint32_t widths, std::byte* planes) {
  constexpr int kQuads = T::kHeadDim / 4;
  const int quad = index % kQuads;
  const int first_g = 4 * (index / kQuads);
  const int group = quad / 8;
  const int width = GroupWidth(widths, group);
  if (width == 0) return;
  const int h = quad % 8 / 4;
  const int t = quad % 4;
  std::byte* to = planes + GroupBytes(WidthsBefore(widths, group));
  const PlaceConstants<T, 4> places(shared, 4 * quad, 1, width);
  for (int g = first_g; g < first_g + 4; ++g) {
    uint32_t chunk[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      chunk[x] = places.word_start;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const int token = block * kBlockTokens + 16 * x + 8 * s + g;
        const Reciprocal token_scale = shared.token_scale[token];
        const std::byte* row = RowOf<T>(shared, token);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          chunk[x] += places.CodeBits(row, e, token_scale) << (8 * e + 4 * s);
      }
    }
    StoreFields(width, chunk, [&](int j, uint32_t word) {
      *reinterpret_cast<uint32_t*>(to + KWordOffset(width, 4 * g + t, 2 * j + h)) = word;
    });
  }
}

// V of one block. Thread `index` (0 .. head_dim / 2 - 1): two places, all tokens.
template <class T>
__device__ __forceinline__ void PackValueBlock(const typename T::Shared& shared, int block,
                                               int index, uint32_t widths, std::byte* planes) {
  const int tile = index / 8;
  const int g = index % 8;
  const int group = tile / 2;
  const int width = GroupWidth(widths, group);
  if (width == 0) return;
  std::byte* to = planes + GroupBytes(WidthsBefore(widths, group));
  const PlaceConstants<T, 2> places(shared, 16 * tile + g, 8, width);
  for (int t = 0; t < 4; ++t) {
    uint32_t chunk[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      chunk[x] = places.word_start;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = block * kBlockTokens + 16 * x + 8 * (e % 2) + 2 * t + e / 2;
        const Reciprocal token_scale = shared.token_scale[token];
        const std::byte* row = RowOf<T>(shared, token);
#pragma unroll
        for (int s = 0; s < 2; ++s)
          chunk[x] += places.CodeBits(row, s, token_scale) << (8 * e + 4 * s);
      }
    }
    StoreFields(width, chunk, [&](int j, uint32_t word) {
      *reinterpret_cast<uint32_t*>(to + VWordOffset(width, tile % 2, 4 * g + t, j)) = word;
    });
  }
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_PACK_CUH_
