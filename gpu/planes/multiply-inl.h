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

// Multiply for kRows rows. The loops over rows are unrolled, so that sums stay in registers.
template <int kRows, class Epilogue>
void MultiplyRows(const int16_t* a, size_t a_stride, const uint32_t* panel, int pairs, int n_count,
                  const Epilogue& epilogue) {
  const hn::CappedTag<int32_t, 16> d;
  const hn::Repartition<int16_t, decltype(d)> d16;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int n = 0; n < n_count; n += 2 * lanes) {
    hn::Vec<decltype(d)> sum0[kRows];
    hn::Vec<decltype(d)> sum1[kRows];
    // Second halves of the sums where a target splits them; unused on x86.
    hn::Vec<decltype(d)> rest0[kRows];
    hn::Vec<decltype(d)> rest1[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum0[r] = sum1[r] = rest0[r] = rest1[r] = hn::Zero(d);
    const int32_t* column = reinterpret_cast<const int32_t*>(panel) + n;
#pragma GCC unroll 2
    for (int pair = 0; pair < pairs; ++pair, column += n_count) {
      const auto b0 = hn::BitCast(d16, hn::Load(d, column));
      const auto b1 = hn::BitCast(d16, hn::Load(d, column + lanes));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const int16_t* source = a + static_cast<size_t>(r) * a_stride + 2 * pair;
        const auto value = hn::BitCast(d16, hn::Set(d, LoadPair(source)));
        sum0[r] = hn::ReorderWidenMulAccumulate(d, value, b0, sum0[r], rest0[r]);
        sum1[r] = hn::ReorderWidenMulAccumulate(d, value, b1, sum1[r], rest1[r]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      epilogue(r, n, hn::RearrangeToOddPlusEven(sum0[r], rest0[r]));
      epilogue(r, n + lanes, hn::RearrangeToOddPlusEven(sum1[r], rest1[r]));
    }
  }
}

// sums[row][n] = sum over pairs of a[row][pair] . panel[pair][n], exact, as epilogue(row, n, vector
// of sums). `a_stride` in values; `n_count` a multiple of 32.
template <class Epilogue>
void Multiply(const int16_t* a, size_t a_stride, int rows, const uint32_t* panel, int pairs,
              int n_count, const Epilogue& epilogue) {
  int row = 0;
  const auto tile = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    MultiplyRows<kRows>(a + static_cast<size_t>(row) * a_stride, a_stride, panel, pairs, n_count,
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
