// Where the bytes of one head's part of a `planes` segment lie (gpu/FORMAT.md). Offsets only, no
// arithmetic on values.
#ifndef KVDEPOT_GPU_PLANES_FORMAT_H_
#define KVDEPOT_GPU_PLANES_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "gpu/host_device.h"
#include "gpu/planes/pattern.h"

namespace kvdepot::planes {

// A lane is 4 g + t: g = 0..7 picks a token (K) or a channel (V) of eight, t a word's channels (K)
// or tokens (V).
inline constexpr int kLanes = 32;
inline constexpr int kTokenScaleBytes = 128;

// Of K, or of V: fp16 stored scales and fp16 centres.
KVDEPOT_HOST_DEVICE constexpr size_t TableBytes(int head_dim) {
  return 4 * static_cast<size_t>(head_dim);
}
KVDEPOT_HOST_DEVICE constexpr size_t GroupBytes(int width) {
  return 256 * static_cast<size_t>(width);
}
KVDEPOT_HOST_DEVICE constexpr size_t RecordBytes(const Pattern& k, const Pattern& v) {
  return kTokenScaleBytes + GroupBytes(k.total()) + GroupBytes(v.total());
}
KVDEPOT_HOST_DEVICE constexpr size_t PartBytes(int head_dim, const Pattern& k, const Pattern& v,
                                               int blocks) {
  return 2 * TableBytes(head_dim) + RecordBytes(k, v) * static_cast<size_t>(blocks);
}

// Widths in one word (gpu/device_head.h): that of a group, and the sum of those before it.
KVDEPOT_HOST_DEVICE constexpr int GroupWidth(uint32_t widths, int group) {
  return static_cast<int>((widths >> (4 * group)) & 15u);
}
KVDEPOT_HOST_DEVICE constexpr int WidthsBefore(uint32_t widths, int group) {
  int sum = 0;
  for (int g = 0; g < group; ++g) sum += GroupWidth(widths, g);
  return sum;
}

// Index of place `place`'s stored scale among the fp16 entries of a table; its centre lies
// CentreDistance() later.
KVDEPOT_HOST_DEVICE constexpr int KTableIndex(int head_dim, int place) {
  const int g = (place % 16) / 2;
  return g * (head_dim / 4) + 2 * (place / 16) + place % 2;
}
KVDEPOT_HOST_DEVICE constexpr int VTableIndex(int head_dim, int place) {
  const int g = place % 8;
  return g * (head_dim / 4) + 2 * (place / 16) + (place / 8) % 2;
}
KVDEPOT_HOST_DEVICE constexpr int CentreDistance(int head_dim) { return head_dim / 8; }

// Byte of token `token`'s scale code among a record's first 128 bytes.
KVDEPOT_HOST_DEVICE constexpr int KTokenScaleIndex(int token) {
  return 16 * (token % 8) + 2 * (token / 16) + (token / 8) % 2;
}
KVDEPOT_HOST_DEVICE constexpr int VTokenScaleIndex(int token) {
  return KTokenScaleIndex(token) + 8;
}

// Byte offset of word f = 2 j + h of a lane inside a K group.
KVDEPOT_HOST_DEVICE constexpr size_t KWordOffset(int width, int lane, int f) {
  return f < 4 * (width / 2) ? static_cast<size_t>(512 * (f / 4) + 16 * lane + 4 * (f % 4))
                             : static_cast<size_t>(512 * (width / 2) + 8 * lane + 4 * (f % 2));
}
// Words of a lane that lie together in a V tile; the third word of width 3 lies in a chunk of its
// own.
KVDEPOT_HOST_DEVICE constexpr int ValueFirstWords(int width) { return width == 3 ? 2 : width; }

// Byte offset of word j of a lane inside V tile `tile` (0 or 1) of a V group.
KVDEPOT_HOST_DEVICE constexpr size_t VWordOffset(int width, int tile, int lane, int j) {
  const size_t base = 128 * static_cast<size_t>(width) * static_cast<size_t>(tile);
  if (width == 3) return base + static_cast<size_t>(j < 2 ? 8 * lane + 4 * j : 256 + 4 * lane);
  return base + static_cast<size_t>(4 * width * lane + 4 * j);
}

// The nibbles of a word's bytes hold left-aligned codes. Chunk x (0..3) of width w lies in word
// FieldWord; shifting the nibble left by FieldShift brings its code to the top. Width 3, chunk 3 is
// spread over bit 0 of all three words.
KVDEPOT_HOST_DEVICE constexpr int FieldWord(int width, int x) {
  return width == 4 ? x : width == 3 ? x : width == 2 ? x / 2 : 0;
}
KVDEPOT_HOST_DEVICE constexpr int FieldShift(int width, int x) {
  return width == 2 ? 2 * (x % 2) : width == 1 ? x : 0;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_FORMAT_H_
