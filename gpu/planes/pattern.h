// Width patterns: how many bits each group of 32 channels of a head takes, by number.
//
// The numbers are in segments and calibrations; gpu/FORMAT.md lists them.
#ifndef KVDEPOT_GPU_PLANES_PATTERN_H_
#define KVDEPOT_GPU_PLANES_PATTERN_H_

#include <cstdint>

#include "gpu/host_device.h"

namespace kvdepot::planes {

inline constexpr int kGroupChannels = 32;
inline constexpr int kGroupsMax = 8;

// Widths of a head's groups, most important first, never increasing.
struct Pattern {
  int groups = 0;
  uint8_t width[kGroupsMax] = {};

  // Sum of widths: mean width is total / groups.
  KVDEPOT_HOST_DEVICE constexpr int total() const {
    int sum = 0;
    for (int g = 0; g < groups; ++g) sum += width[g];
    return sum;
  }
  // Groups that store anything; the rest decodes to the centres.
  KVDEPOT_HOST_DEVICE constexpr int stored_groups() const {
    int count = 0;
    while (count < groups && width[count] > 0) ++count;
    return count;
  }
};

// Numbers below this exist for `head_dim`; 0 for a head_dim that is not supported.
constexpr int PatternCount(int head_dim) {
  return head_dim == 64 ? 8 : head_dim == 128 || head_dim == 256 ? 15 : 0;
}

// One row a number.
inline constexpr uint8_t kKeyWidths64[8][2] = {{1, 0}, {2, 0}, {3, 0}, {3, 1},
                                               {4, 1}, {4, 2}, {4, 3}, {4, 4}};
inline constexpr uint8_t kKeyWidths128[15][4] = {
    {2, 0, 0, 0}, {3, 0, 0, 0}, {3, 1, 0, 0}, {3, 2, 0, 0}, {3, 2, 1, 0},
    {4, 2, 1, 0}, {4, 2, 1, 1}, {4, 2, 2, 1}, {4, 3, 2, 1}, {4, 3, 2, 2},
    {4, 3, 3, 2}, {4, 4, 3, 2}, {4, 4, 3, 3}, {4, 4, 4, 3}, {4, 4, 4, 4}};
inline constexpr uint8_t kKeyWidths256[15][8] = {
    {3, 1, 0, 0, 0, 0, 0, 0}, {3, 2, 1, 0, 0, 0, 0, 0}, {4, 2, 1, 1, 0, 0, 0, 0},
    {4, 2, 2, 1, 1, 0, 0, 0}, {4, 3, 2, 1, 1, 1, 0, 0}, {4, 3, 2, 2, 1, 1, 1, 0},
    {4, 3, 3, 2, 2, 1, 1, 0}, {4, 4, 3, 2, 2, 1, 1, 1}, {4, 4, 3, 3, 2, 2, 1, 1},
    {4, 4, 3, 3, 3, 2, 2, 1}, {4, 4, 4, 3, 3, 2, 2, 2}, {4, 4, 4, 4, 3, 3, 2, 2},
    {4, 4, 4, 4, 4, 3, 3, 2}, {4, 4, 4, 4, 4, 4, 3, 3}, {4, 4, 4, 4, 4, 4, 4, 4}};
inline constexpr uint8_t kValueWidths64[8][2] = {{1, 0}, {1, 1}, {2, 1}, {2, 2},
                                                 {3, 2}, {3, 3}, {4, 3}, {4, 4}};
inline constexpr uint8_t kValueWidths128[15][4] = {
    {1, 1, 0, 0}, {1, 1, 1, 0}, {1, 1, 1, 1}, {2, 1, 1, 1}, {2, 2, 1, 1},
    {2, 2, 2, 1}, {2, 2, 2, 2}, {3, 2, 2, 2}, {3, 3, 2, 2}, {3, 3, 3, 2},
    {3, 3, 3, 3}, {4, 3, 3, 3}, {4, 4, 3, 3}, {4, 4, 4, 3}, {4, 4, 4, 4}};
inline constexpr uint8_t kValueWidths256[15][8] = {
    {1, 1, 1, 1, 0, 0, 0, 0}, {1, 1, 1, 1, 1, 1, 0, 0}, {2, 1, 1, 1, 1, 1, 1, 0},
    {2, 2, 1, 1, 1, 1, 1, 1}, {2, 2, 2, 2, 1, 1, 1, 1}, {2, 2, 2, 2, 2, 2, 1, 1},
    {2, 2, 2, 2, 2, 2, 2, 2}, {3, 3, 2, 2, 2, 2, 2, 2}, {3, 3, 3, 3, 2, 2, 2, 2},
    {3, 3, 3, 3, 3, 3, 2, 2}, {3, 3, 3, 3, 3, 3, 3, 3}, {4, 4, 3, 3, 3, 3, 3, 3},
    {4, 4, 4, 4, 3, 3, 3, 3}, {4, 4, 4, 4, 4, 4, 3, 3}, {4, 4, 4, 4, 4, 4, 4, 4}};

// Width list `number` of K or of V. Requires number < PatternCount(head_dim).
constexpr Pattern PatternOf(bool is_key, int head_dim, int number) {
  Pattern pattern;
  pattern.groups = head_dim / kGroupChannels;
  for (int g = 0; g < pattern.groups; ++g) {
    pattern.width[g] = head_dim == 64    ? (is_key ? kKeyWidths64 : kValueWidths64)[number][g]
                       : head_dim == 128 ? (is_key ? kKeyWidths128 : kValueWidths128)[number][g]
                                         : (is_key ? kKeyWidths256 : kValueWidths256)[number][g];
  }
  return pattern;
}
constexpr Pattern KeyPattern(int head_dim, int number) { return PatternOf(true, head_dim, number); }
constexpr Pattern ValuePattern(int head_dim, int number) {
  return PatternOf(false, head_dim, number);
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_PATTERN_H_
