// Integer products of a few rows with a panel. Highway: included once a target.
#if defined(KVDEPOT_GPU_PLANES_MULTIPLY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVDEPOT_GPU_PLANES_MULTIPLY_INL_H_
#undef KVDEPOT_GPU_PLANES_MULTIPLY_INL_H_
#else
#define KVDEPOT_GPU_PLANES_MULTIPLY_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvdepot::planes {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Most rows that one pass over a panel serves: with two vectors of sums each they and the operands
// fit AVX2's registers.
constexpr int kTileRows = 4;

// Two neighbouring 16-bit values as one 32-bit lane.
inline int32_t LoadPair(const int16_t* pair) {
  int32_t both;
  memcpy(&both, pair, sizeof(both));
  return both;
}

// Left factor: rows of 16-bit integers, in groups of `group_pairs` pairs, each group with a unit of
// its own.
struct IntegerRows {
  const int16_t* values = nullptr;  // [row][stride]
  size_t stride = 0;
  const float* unit = nullptr;  // [row][unit_stride]
  size_t unit_stride = 0;
  int groups = 1;
  int group_pairs = 0;

  IntegerRows From(int row) const {
    IntegerRows rest = *this;
    rest.values += static_cast<size_t>(row) * stride;
    rest.unit += static_cast<size_t>(row) * unit_stride;
    return rest;
  }
};

// Multiply for kRows rows. The loops over rows are unrolled, so that sums stay in registers.
template <int kRows, class Epilogue>
HWY_INLINE void MultiplyRows(const IntegerRows& a, const uint32_t* panel, int n_count,
                             const Epilogue& epilogue) {
  const hn::CappedTag<int32_t, 16> d;
  const hn::Repartition<int16_t, decltype(d)> d16;
  const hn::Rebind<float, decltype(d)> df;
  using Int32 = hn::Vec<decltype(d)>;
  using Float = hn::Vec<decltype(df)>;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int n = 0; n < n_count; n += 2 * lanes) {
    Float total0[kRows];
    Float total1[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total0[r] = total1[r] = hn::Zero(df);
    const int32_t* column = reinterpret_cast<const int32_t*>(panel) + n;
    const int16_t* values = a.values;
    for (int group = 0; group < a.groups; ++group) {
      Int32 sum0[kRows];
      Int32 sum1[kRows];
      // Second halves of the sums where a target splits them; unused on x86.
      Int32 rest0[kRows];
      Int32 rest1[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum0[r] = sum1[r] = rest0[r] = rest1[r] = hn::Zero(d);
#pragma GCC unroll 4
      for (int pair = 0; pair < a.group_pairs; ++pair, column += n_count, values += 2) {
        const auto b0 = hn::BitCast(d16, hn::Load(d, column));
        const auto b1 = hn::BitCast(d16, hn::Load(d, column + lanes));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const int32_t both = LoadPair(values + static_cast<size_t>(r) * a.stride);
          const auto value = hn::BitCast(d16, hn::Set(d, both));
          sum0[r] = hn::ReorderWidenMulAccumulate(d, value, b0, sum0[r], rest0[r]);
          sum1[r] = hn::ReorderWidenMulAccumulate(d, value, b1, sum1[r], rest1[r]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const auto unit = hn::Set(df, a.unit[static_cast<size_t>(r) * a.unit_stride + group]);
        const auto whole0 = hn::RearrangeToOddPlusEven(sum0[r], rest0[r]);
        const auto whole1 = hn::RearrangeToOddPlusEven(sum1[r], rest1[r]);
        total0[r] = hn::MulAdd(hn::ConvertTo(df, whole0), unit, total0[r]);
        total1[r] = hn::MulAdd(hn::ConvertTo(df, whole1), unit, total1[r]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      epilogue(r, n, total0[r]);
      epilogue(r, n + lanes, total1[r]);
    }
  }
}

// For every row and n: the sum over groups of unit times the exact sum of the row's pairs .
// panel[pair][n], as epilogue(row, n, vector of sums). The panel has all groups' pairs, `n_count`
// (a multiple of 32) of them a row.
template <class Epilogue>
void Multiply(const IntegerRows& a, int rows, const uint32_t* panel, int n_count,
              const Epilogue& epilogue) {
  int row = 0;
  const auto tile = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    MultiplyRows<kRows>(a.From(row), panel, n_count,
                        [&](int r, int n, auto sums) { epilogue(row + r, n, sums); });
    row += kRows;
  };
  // Tiles as equal as can be: six rows are three and three.
  for (int tiles = (rows + kTileRows - 1) / kTileRows; tiles > 0; --tiles) {
    switch ((rows - row + tiles - 1) / tiles) {
      case 4:
        tile(std::integral_constant<int, 4>());
        break;
      case 3:
        tile(std::integral_constant<int, 3>());
        break;
      case 2:
        tile(std::integral_constant<int, 2>());
        break;
      default:
        tile(std::integral_constant<int, 1>());
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot::planes
HWY_AFTER_NAMESPACE();

#endif  // include guard
