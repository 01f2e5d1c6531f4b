// Words of a record to one word a channel on the device: the way back from the bit places of
// gpu/FORMAT.md, "Record". No value arithmetic.
//
// Codes come left-aligned in nibbles, eight to a word. A block's codes become 8 rows of such words,
// one a channel, at CodePosition of the channel's number. K: row g, nibble s of byte x is token 16
// x + 8 s + g. V: row 2 t + y, nibble n of byte e is token 16 (2 y + n) + 8 (e mod 2) + 2 t + e
// / 2.
#ifndef KVDEPOT_GPU_PLANES_UNPACK_CUH_
#define KVDEPOT_GPU_PLANES_UNPACK_CUH_

#include <cstddef>
#include <cstdint>

#include "gpu/planes/format.h"

namespace kvdepot::planes {

inline constexpr int kCodeRows = 8;

// Channels 8 o .. 8 o + 3 of all o come first, in order, then the others: a warp reads 16 bytes a
// lane without gaps.
KVDEPOT_HOST_DEVICE constexpr int CodePosition(int head_dim, int channel) {
  return (channel & 4) * (head_dim / 8) + channel / 8 * 4 + (channel & 3);
}

// Token of nibble `half` of byte `byte` in row `row`: the sum of a part that the row decides and of
// one that the place in the word decides.
__device__ __forceinline__ int TokenOfRow(bool is_key, int row) {
  return is_key ? row : 32 * (row % 2) + 2 * (row / 2);
}
__device__ __forceinline__ constexpr int TokenOfNibble(bool is_key, int byte, int half) {
  return is_key ? 16 * byte + 8 * half : 16 * half + 8 * (byte % 2) + byte / 2;
}

// Codes of chunks x = 0..3 from the `width` words that hold them.
__device__ __forceinline__ void AlignFields(int width, const uint32_t (&words)[4],
                                            uint32_t (&chunk)[4]) {
  constexpr uint32_t kLow = 0x11111111u;
  switch (width) {
    case 4:
#pragma unroll
      for (int x = 0; x < 4; ++x) chunk[x] = words[x];
      break;
    case 3:
#pragma unroll
      for (int x = 0; x < 3; ++x) chunk[x] = words[x] & ~kLow;
      chunk[3] = (words[0] & kLow) << 1 | (words[1] & kLow) << 2 | (words[2] & kLow) << 3;
      break;
    case 2:
#pragma unroll
      for (int x = 0; x < 4; ++x)
        chunk[x] = (x % 2 == 0 ? words[x / 2] : words[x / 2] << 2) & 0xCCCCCCCCu;
      break;
    default:
#pragma unroll
      for (int x = 0; x < 4; ++x) chunk[x] = words[0] << x & 0x88888888u;
  }
}

// What a lane reads of one group: K words [j] of h = 0 and 1, or V words of tiles 0 and 1.
struct GroupWords {
  uint32_t words[2][4];
};

__device__ __forceinline__ GroupWords LoadKeyGroup(int width, const std::byte* group, int lane) {
  GroupWords result{};
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {  // j = 2 pair and 2 pair + 1
    if (2 * pair + 1 < width) {
      const uint4 chunk =
          *reinterpret_cast<const uint4*>(group + KWordOffset(width, lane, 4 * pair));
      result.words[0][2 * pair] = chunk.x;
      result.words[1][2 * pair] = chunk.y;
      result.words[0][2 * pair + 1] = chunk.z;
      result.words[1][2 * pair + 1] = chunk.w;
    } else if (2 * pair < width) {
      const uint2 rest =
          *reinterpret_cast<const uint2*>(group + KWordOffset(width, lane, 4 * pair));
      result.words[0][2 * pair] = rest.x;
      result.words[1][2 * pair] = rest.y;
    }
  }
  return result;
}

__device__ __forceinline__ GroupWords LoadValueGroup(int width, const std::byte* group, int lane) {
  GroupWords result{};
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    uint32_t(&words)[4] = result.words[tile];
    const std::byte* first = group + VWordOffset(width, tile, lane, 0);
    if (width == 4) {
      const uint4 chunk = *reinterpret_cast<const uint4*>(first);
      words[0] = chunk.x, words[1] = chunk.y, words[2] = chunk.z, words[3] = chunk.w;
    } else if (width >= 2) {
      const uint2 chunk = *reinterpret_cast<const uint2*>(first);
      words[0] = chunk.x, words[1] = chunk.y;
      if (width == 3)
        words[2] = *reinterpret_cast<const uint32_t*>(group + VWordOffset(3, tile, lane, 2));
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(first);
    }
  }
  return result;
}

// Positions of the places whose codes a lane holds, as UnpackKeyGroup and UnpackValueGroup want
// them: of K 16 h + 4 t + e in byte e of positions[h], of V 16 tile + 8 s + g in byte s of
// positions[tile].
__device__ __forceinline__ void LanePositions(bool is_key, int head_dim,
                                              const uint8_t* order_of_group, int lane,
                                              uint32_t (&positions)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    positions[half] = 0;
    const int count = is_key ? 4 : 2;
    for (int i = 0; i < count; ++i) {
      const int place = is_key ? 16 * half + 4 * (lane % 4) + i : 16 * half + 8 * i + lane / 4;
      const int position = CodePosition(head_dim, order_of_group[place]);
      positions[half] |= static_cast<uint32_t>(position) << (8 * i);
    }
  }
}

// Stores a lane's codes: rows[row * row_words + position].
__device__ __forceinline__ void UnpackKeyGroup(int width, const GroupWords& from,
                                               const uint32_t (&positions)[2], int lane,
                                               uint32_t* rows, int row_words) {
  uint32_t* row = rows + lane / 4 * row_words;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t chunk[4];
    AlignFields(width, from.words[h], chunk);
    // Byte e of chunk x becomes byte x of place e's word.
    const uint32_t low01 = __byte_perm(chunk[0], chunk[1], 0x5140);
    const uint32_t high01 = __byte_perm(chunk[0], chunk[1], 0x7362);
    const uint32_t low23 = __byte_perm(chunk[2], chunk[3], 0x5140);
    const uint32_t high23 = __byte_perm(chunk[2], chunk[3], 0x7362);
    row[positions[h] & 255u] = __byte_perm(low01, low23, 0x5410);
    row[positions[h] >> 8 & 255u] = __byte_perm(low01, low23, 0x7632);
    row[positions[h] >> 16 & 255u] = __byte_perm(high01, high23, 0x5410);
    row[positions[h] >> 24] = __byte_perm(high01, high23, 0x7632);
  }
}

__device__ __forceinline__ void UnpackValueGroup(int width, const GroupWords& from,
                                                 const uint32_t (&positions)[2], int lane,
                                                 uint32_t* rows, int row_words) {
  constexpr uint32_t kLowNibbles = 0x0F0F0F0Fu;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    uint32_t chunk[4];
    AlignFields(width, from.words[tile], chunk);
    const uint32_t first = positions[tile] & 255u;
    const uint32_t second = positions[tile] >> 8;
#pragma unroll
    for (int y = 0; y < 2; ++y) {
      uint32_t* row = rows + (2 * (lane % 4) + y) * row_words;
      const uint32_t even = chunk[2 * y];
      const uint32_t odd = chunk[2 * y + 1];
      row[first] = (even & kLowNibbles) | (odd & kLowNibbles) << 4;
      row[second] = (even >> 4 & kLowNibbles) | (odd & ~kLowNibbles);
    }
  }
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_UNPACK_CUH_
