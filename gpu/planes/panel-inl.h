// Panels: the codes of one block as 16-bit pairs, in the order in which integer multiply-add wants
// them.
//
// A panel is [pair][n] of two int16: for K a pair is two places and n a token, for V a pair is two
// tokens and n a place. Codes are left-aligned in 4 bits, as in the record. Highway: included once
// a target.
#if defined(KVDEPOT_GPU_PLANES_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVDEPOT_GPU_PLANES_PANEL_INL_H_
#undef KVDEPOT_GPU_PLANES_PANEL_INL_H_
#else
#define KVDEPOT_GPU_PLANES_PANEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "gpu/planes/format.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvdepot::planes {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Words of a group or tile, [column][g]: transposed from [g][column], so that the eight values of g
// are neighbours.
struct WordGrid {
  HWY_ALIGN uint32_t words[32][8];
};

// `words_per_lane` words of each of 32 lanes at `from` become columns t * words_per_lane + j, t =
// lane % 4.
HWY_INLINE void TransposeWords(const std::byte* from, int words_per_lane, uint32_t (*columns)[8]) {
  const hn::FixedTag<uint32_t, 4> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  const auto load = [&](int g, int column) {
    return hn::LoadU(d, reinterpret_cast<const uint32_t*>(from) + g * 4 * words_per_lane + column);
  };
  const auto store = [&](auto v, int column, int g) {
    hn::Store(hn::BitCast(d, v), d, columns[column] + g);
  };
  for (int column = 0; column < 4 * words_per_lane; column += 4) {
    for (int g = 0; g < 8; g += 4) {
      const auto r0 = load(g, column);
      const auto r1 = load(g + 1, column);
      const auto r2 = load(g + 2, column);
      const auto r3 = load(g + 3, column);
      const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, r0, r1));
      const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, r2, r3));
      const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, r0, r1));
      const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, r2, r3));
      store(hn::InterleaveLower(d64, low01, low23), column, g);
      store(hn::InterleaveUpper(d64, low01, low23), column + 1, g);
      store(hn::InterleaveLower(d64, high01, high23), column + 2, g);
      store(hn::InterleaveUpper(d64, high01, high23), column + 3, g);
    }
  }
}

template <int kRight, class V>
HWY_INLINE V ShiftBits(V v) {
  if constexpr (kRight > 0) {
    return hn::ShiftRight<kRight>(v);
  } else if constexpr (kRight < 0) {
    return hn::ShiftLeft<-kRight>(v);
  } else {
    return v;
  }
}

// Field (x, s) of a byte from the words of one lane column. Stores two rows of pairs: bytes 0 and 2
// to `even`, bytes 1 and 3 to `odd`.
template <int kWidth, int kX, int kS, class D>
HWY_INLINE void ExpandField(D d, const hn::Vec<D>* word, uint32_t* even, uint32_t* odd) {
  const auto mask = hn::Set(d, (((1u << kWidth) - 1) << (4 - kWidth)) * 0x00010001u);
  if constexpr (kWidth == 3 && kX == 3) {
    const auto bit = hn::Set(d, 0x01010101u);
    const auto pick = [&](int k) { return hn::And(ShiftBits<4 * kS>(word[k]), bit); };
    const auto code = hn::Or(hn::ShiftLeft<1>(pick(0)),
                             hn::Or(hn::ShiftLeft<2>(pick(1)), hn::ShiftLeft<3>(pick(2))));
    hn::Store(hn::And(code, mask), d, even);
    hn::Store(hn::And(hn::ShiftRight<8>(code), mask), d, odd);
  } else {
    constexpr int kRight = 4 * kS - FieldShift(kWidth, kX);
    const auto source = word[FieldWord(kWidth, kX)];
    hn::Store(hn::And(ShiftBits<kRight>(source), mask), d, even);
    hn::Store(hn::And(ShiftBits<kRight + 8>(source), mask), d, odd);
  }
}

// All eight fields of one lane column, for eight values of g: words[j] points to them. Chunk x lies
// `x_distance` from the one before, s = 1 eight pairs from s = 0, and the row of odd bytes
// `odd_distance` from that of even ones.
template <int kWidth>
HWY_INLINE void ExpandColumn(const uint32_t* const* words, uint32_t* rows, size_t x_distance,
                             size_t odd_distance) {
  const hn::CappedTag<uint32_t, 8> d;
  for (size_t g = 0; g < 8; g += hn::Lanes(d)) {
    // All words are loaded before the first store, which might otherwise seem to change them.
    hn::Vec<decltype(d)> word[kWidth];
    for (int j = 0; j < kWidth; ++j) word[j] = hn::Load(d, words[j] + g);
    const auto expand = [&](auto x, auto s) {
      constexpr int kX = decltype(x)::value;
      constexpr int kS = decltype(s)::value;
      uint32_t* even = rows + kX * x_distance + 8 * kS + g;
      ExpandField<kWidth, kX, kS>(d, word, even, even + odd_distance);
    };
    const auto expand_both = [&](auto x) {
      expand(x, std::integral_constant<int, 0>());
      expand(x, std::integral_constant<int, 1>());
    };
    expand_both(std::integral_constant<int, 0>());
    expand_both(std::integral_constant<int, 1>());
    expand_both(std::integral_constant<int, 2>());
    expand_both(std::integral_constant<int, 3>());
  }
}

// K: pair 8 h + 2 t + odd of the group holds its places 16h + 4t + {0, 2} (even) or {1, 3} (odd); n
// is the token.
template <int kWidth>
void KeyGroupPanel(const std::byte* group, uint32_t* panel) {
  WordGrid grid;
  for (int chunk = 0; chunk < kWidth / 2; ++chunk)
    TransposeWords(group + 512 * chunk, 4, grid.words + 16 * chunk);
  if constexpr (kWidth % 2 == 1)
    TransposeWords(group + 512 * (kWidth / 2), 2, grid.words + 16 * (kWidth / 2));
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 4; ++t) {
      const uint32_t* words[kWidth];
      for (int j = 0; j < kWidth; ++j) {
        const int f = 2 * j + h;
        const bool whole = f < 4 * (kWidth / 2);
        words[j] =
            grid.words[whole ? 16 * (f / 4) + 4 * t + f % 4 : 16 * (kWidth / 2) + 2 * t + f % 2];
      }
      uint32_t* rows = panel + (8 * h + 2 * t) * kBlockTokens;
      ExpandColumn<kWidth>(words, rows, 16, kBlockTokens);
    }
  }
}

// V: pair m holds tokens 2m and 2m + 1; n is the place, `stride` of them a row, this tile's 16 at
// `panel`.
template <int kWidth>
void ValueTilePanel(const std::byte* tile, size_t stride, uint32_t* panel) {
  constexpr int kFirstWords = ValueFirstWords(kWidth);
  WordGrid grid;
  TransposeWords(tile, kFirstWords, grid.words);
  if constexpr (kWidth == 3) TransposeWords(tile + 256, 1, grid.words + 8);
  for (int t = 0; t < 4; ++t) {
    const uint32_t* words[kWidth];
    for (int j = 0; j < kWidth; ++j) {
      words[j] = grid.words[j < kFirstWords ? kFirstWords * t + j : 8 + t];
    }
    uint32_t* rows = panel + static_cast<size_t>(t) * stride;
    ExpandColumn<kWidth>(words, rows, 8 * stride, 4 * stride);
  }
}

template <class Unpack>
void WithWidth(int width, const Unpack& unpack) {
  switch (width) {
    case 1:
      return unpack(std::integral_constant<int, 1>());
    case 2:
      return unpack(std::integral_constant<int, 2>());
    case 3:
      return unpack(std::integral_constant<int, 3>());
    default:
      return unpack(std::integral_constant<int, 4>());
  }
}

// One block's K planes: 16 pairs a stored group, 64 tokens a row.
inline void KeyPanel(const Pattern& pattern, const std::byte* planes, uint32_t* panel) {
  for (int group = 0; group < pattern.stored_groups(); ++group) {
    WithWidth(pattern.width[group], [&](auto width) {
      KeyGroupPanel<decltype(width)::value>(planes, panel + group * 16 * kBlockTokens);
    });
    planes += GroupBytes(pattern.width[group]);
  }
}

// One block's V planes: 32 pairs, 32 places a stored group in a row.
inline void ValuePanel(const Pattern& pattern, const std::byte* planes, uint32_t* panel) {
  const size_t stride = static_cast<size_t>(pattern.stored_groups()) * kGroupChannels;
  for (int group = 0; group < pattern.stored_groups(); ++group) {
    WithWidth(pattern.width[group], [&](auto width) {
      constexpr int kWidth = decltype(width)::value;
      for (int tile = 0; tile < 2; ++tile) {
        ValueTilePanel<kWidth>(planes + 128 * kWidth * tile, stride,
                               panel + group * kGroupChannels + 16 * tile);
      }
    });
    planes += GroupBytes(pattern.width[group]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot::planes
HWY_AFTER_NAMESPACE();

#endif  // include guard
