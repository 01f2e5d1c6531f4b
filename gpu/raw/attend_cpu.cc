#include "gpu/raw/attend_cpu.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu/raw/attend_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "gpu/load_values-inl.h"
#include "gpu/softmax-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvdepot::raw {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kvdepot::HWY_NAMESPACE::ConvertToFloat;
using kvdepot::HWY_NAMESPACE::ScoresToWeights;

// Tokens of one online-softmax step, and of one conversion to fp32 (which stays in the first-level
// cache).
constexpr int kTileTokens = 64;
constexpr int kStripTokens = 16;

// scores[t] = q . rows[t] for one strip.
void DotStrip(const float* HWY_RESTRICT q, const float* HWY_RESTRICT rows, int tokens, int head_dim,
              float* HWY_RESTRICT scores) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int t = 0; t < tokens; t += 2) {
    const float* first = rows + t * head_dim;
    const float* second = t + 1 < tokens ? first + head_dim : first;
    auto a0 = hn::Zero(d);
    auto a1 = hn::Zero(d);
    auto b0 = hn::Zero(d);
    auto b1 = hn::Zero(d);
    for (int c = 0; c < head_dim; c += 2 * lanes) {
      const auto q0 = hn::LoadU(d, q + c);
      const auto q1 = hn::LoadU(d, q + c + lanes);
      a0 = hn::MulAdd(q0, hn::LoadU(d, first + c), a0);
      a1 = hn::MulAdd(q1, hn::LoadU(d, first + c + lanes), a1);
      b0 = hn::MulAdd(q0, hn::LoadU(d, second + c), b0);
      b1 = hn::MulAdd(q1, hn::LoadU(d, second + c + lanes), b1);
    }
    scores[t] = hn::GetLane(hn::SumOfLanes(d, hn::Add(a0, a1)));
    if (t + 1 < tokens) scores[t + 1] = hn::GetLane(hn::SumOfLanes(d, hn::Add(b0, b1)));
  }
}

// output += sum of weights[t] rows[t] for one strip.
void AccumulateStrip(const float* HWY_RESTRICT weights, const float* HWY_RESTRICT rows, int tokens,
                     int head_dim, float* HWY_RESTRICT output) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int c = 0; c < head_dim; c += 2 * lanes) {
    auto o0 = hn::LoadU(d, output + c);
    auto o1 = hn::LoadU(d, output + c + lanes);
    for (int t = 0; t < tokens; ++t) {
      const auto weight = hn::Set(d, weights[t]);
      o0 = hn::MulAdd(weight, hn::LoadU(d, rows + t * head_dim + c), o0);
      o1 = hn::MulAdd(weight, hn::LoadU(d, rows + t * head_dim + c + lanes), o1);
    }
    hn::StoreU(o0, d, output + c);
    hn::StoreU(o1, d, output + c + lanes);
  }
}

void ScaleRow(float factor, int head_dim, float* HWY_RESTRICT output) {
  const hn::ScalableTag<float> d;
  const auto factor_v = hn::Set(d, factor);
  for (int c = 0; c < head_dim; c += static_cast<int>(hn::Lanes(d))) {
    hn::StoreU(hn::Mul(hn::LoadU(d, output + c), factor_v), d, output + c);
  }
}

// Where in a tile of `tokens` tokens from `position` on the range of positions [begin, end) lies.
int Within(uint64_t bound, uint64_t position, int tokens) {
  if (bound <= position) return 0;
  return static_cast<int>(std::min<uint64_t>(bound - position, static_cast<uint64_t>(tokens)));
}

template <DType kDType>
void AttendTile(const QueryRows& rows, const std::byte* k, const std::byte* v, uint64_t position,
                int tokens, const RowResults& results) {
  const int head_dim = rows.head_dim;
  const size_t dim = static_cast<size_t>(head_dim);
  const size_t row_bytes = dim * DTypeBytes(kDType);
  HWY_ALIGN float strip[kStripTokens * kHeadDimMax];
  HWY_ALIGN float scores[kQueryRowsMax][kTileTokens];

  for (int t = 0; t < tokens; t += kStripTokens) {
    const int count = std::min(kStripTokens, tokens - t);
    ConvertToFloat<kDType>(k + static_cast<size_t>(t) * row_bytes, static_cast<size_t>(count) * dim,
                           strip);
    for (int r = 0; r < rows.count; ++r)
      DotStrip(rows.q + r * head_dim, strip, count, head_dim, scores[r] + t);
  }
  for (int r = 0; r < rows.count; ++r) {
    // The whole tile is turned into weights; what lies past `tokens` is never visible.
    const float factor =
        ScoresToWeights(scores[r], kTileTokens, Within(rows.begin[r], position, tokens),
                        Within(rows.end[r], position, tokens), rows.soft_cap, results.state[r])
            .factor;
    if (factor != 1) ScaleRow(factor, head_dim, results.output + r * head_dim);
  }
  for (int t = 0; t < tokens; t += kStripTokens) {
    const int count = std::min(kStripTokens, tokens - t);
    ConvertToFloat<kDType>(v + static_cast<size_t>(t) * row_bytes, static_cast<size_t>(count) * dim,
                           strip);
    for (int r = 0; r < rows.count; ++r) {
      AccumulateStrip(scores[r] + t, strip, count, head_dim, results.output + r * head_dim);
    }
  }
}

template <DType kDType>
void AttendTokens(const QueryRows& rows, const std::byte* k, const std::byte* v, uint64_t position,
                  int tokens, const RowResults& results) {
  const size_t row_bytes = static_cast<size_t>(rows.head_dim) * DTypeBytes(kDType);
  for (int t = 0; t < tokens; t += kTileTokens) {
    const size_t offset = static_cast<size_t>(t) * row_bytes;
    AttendTile<kDType>(rows, k + offset, v + offset, position + static_cast<uint64_t>(t),
                       std::min(kTileTokens, tokens - t), results);
  }
}

void AttendExact(const QueryRows& rows, DType dtype, const std::byte* k, const std::byte* v,
                 uint64_t position, int tokens, const RowResults& results) {
  switch (dtype) {
    case DType::kBf16:
      return AttendTokens<DType::kBf16>(rows, k, v, position, tokens, results);
    case DType::kFp16:
      return AttendTokens<DType::kFp16>(rows, k, v, position, tokens, results);
    case DType::kFp32:
      return AttendTokens<DType::kFp32>(rows, k, v, position, tokens, results);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot::raw
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvdepot::raw {

HWY_EXPORT(AttendExact);

void AttendExact(const QueryRows& rows, DType dtype, const std::byte* k, const std::byte* v,
                 uint64_t position, int tokens, const RowResults& results) {
  HWY_DYNAMIC_DISPATCH(AttendExact)(rows, dtype, k, v, position, tokens, results);
}

}  // namespace kvdepot::raw
#endif  // HWY_ONCE
