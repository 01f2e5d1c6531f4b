#include "gpu/planes/attend_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "gpu/planes/attend_buffers.h"
#include "gpu/planes/codec.h"
#include "gpu/shape.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu/planes/attend_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "gpu/planes/multiply-inl.h"
#include "gpu/planes/panel-inl.h"
#include "gpu/softmax-inl.h"
#include "hwy/highway.h"

// Queries times stored scales, and weights times token scales, become 16-bit integers, so that
// their products with codes are exact integer sums. Rounding them costs about 1e-4 of the output: a
// query's unit holds for one group of one part, a weight's for one block.
HWY_BEFORE_NAMESPACE();
namespace kvdepot::planes {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kvdepot::HWY_NAMESPACE::ScoresToWeights;
using kvdepot::HWY_NAMESPACE::WeightSums;

constexpr float kInt16Max = 32767;
constexpr int kGroupPairs = kGroupChannels / 2;

// At most 16 lanes, so that two vectors fit a group of places.
using FloatTag = hn::CappedTag<float, 16>;
using Int32Tag = hn::Rebind<int32_t, FloatTag>;
using Int16Tag = hn::Rebind<int16_t, FloatTag>;

inline int Lanes() { return static_cast<int>(hn::Lanes(FloatTag())); }

void LoadTable(const TensorView& tensor, AttendBuffers& buffers) {
  for (int place = 0; place < tensor.head_dim(); ++place) {
    const int index = tensor.is_key ? PairOrder(place) : place;
    buffers.stored_scale[index] = Fp16ToFloat(tensor.stored_scale(place));
    buffers.centre[index] = Fp16ToFloat(tensor.centre(place));
  }
}

// token_scale[token]: codes lie as [g][8 of K or V], tokens are [i][g].
void LoadTokenScales(const TensorView& tensor, int block, AttendBuffers& buffers) {
  const hn::CappedTag<uint32_t, 8> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  const uint8_t* codes =
      reinterpret_cast<const uint8_t*>(tensor.record(block)) + (tensor.is_key ? 0 : 8);
  alignas(64) uint32_t scales[8][8];
  for (int g = 0; g < 8; ++g) {
    for (size_t i = 0; i < 8; i += hn::Lanes(d)) {
      const auto code = hn::PromoteTo(d, hn::LoadU(d8, codes + 16 * g + i));
      // TokenScaleValue of codec.h.
      hn::Store(hn::Add(hn::ShiftLeft<20>(code), hn::Set(d, 96u << 23)), d, scales[g] + i);
    }
  }
  TransposeWords(reinterpret_cast<const std::byte*>(scales), 2,
                 reinterpret_cast<uint32_t(*)[8]>(buffers.token_scale));
}

// Sum over places of query times centre.
float CentreScore(const float* HWY_RESTRICT query, const float* HWY_RESTRICT centre, int head_dim) {
  const FloatTag d;
  auto sum = hn::Zero(d);
  for (int i = 0; i < head_dim; i += Lanes()) {
    sum = hn::MulAdd(hn::Load(d, query + i), hn::Load(d, centre + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// One row's queries of one group, times stored scales, in units of the largest.
void QuantiseQuery(int row, int group, int width, AttendBuffers& buffers) {
  const FloatTag d;
  const Int32Tag d32;
  const Int16Tag d16;
  const int begin = group * kGroupChannels;
  const float* query = buffers.query[row] + begin;
  const float* scale = buffers.stored_scale + begin;
  auto largest = hn::Zero(d);
  for (int i = 0; i < kGroupChannels; i += Lanes()) {
    largest = hn::Max(largest, hn::Abs(hn::Mul(hn::Load(d, query + i), hn::Load(d, scale + i))));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const float inverse = max > 0 ? kInt16Max / max : 0;
  // Queries too small for their inverse unit to be finite add nothing.
  const bool usable = std::isfinite(inverse);
  const auto factor = hn::Set(d, usable ? inverse : 0);
  auto sum = hn::Zero(d32);
  for (int i = 0; i < kGroupChannels; i += Lanes()) {
    const auto scaled = hn::Mul(hn::Load(d, query + i), hn::Load(d, scale + i));
    const auto rounded = hn::NearestInt(hn::Mul(scaled, factor));
    hn::Store(hn::DemoteTo(d16, rounded), d16, buffers.scaled_query[row] + begin + i);
    sum = hn::Add(sum, rounded);
  }
  const float unit = usable ? max / kInt16Max : 0;
  buffers.query_unit[row][group] = unit;
  buffers.query_middle[row] +=
      unit * HalfAligned(width) * static_cast<float>(hn::GetLane(hn::SumOfLanes(d32, sum)));
}

// score[row][tokens of the block, from `column` on].
void ScoreBlock(const TensorView& k, int block, int rows, int column, AttendBuffers& buffers) {
  const FloatTag d;
  KeyPanel(k.pattern, k.planes(block), buffers.panel);
  LoadTokenScales(k, block, buffers);
  const auto epilogue = [&](int row, int n, auto sums) {
    const auto centred = hn::Sub(sums, hn::Set(d, buffers.query_middle[row]));
    const auto scale = hn::Load(d, buffers.token_scale + n);
    const auto centre = hn::Set(d, buffers.centre_score[row]);
    hn::Store(hn::MulAdd(centred, scale, centre), d, buffers.score[row] + column + n);
  };
  const IntegerRows queries{buffers.scaled_query[0],   kHeadDimMax,
                            buffers.query_unit[0],     kGroupsMax,
                            k.pattern.stored_groups(), kGroupPairs};
  Multiply(queries, rows, buffers.panel, kBlockTokens, epilogue);
}

// One row's weights of a block, times token scales, in units of the largest.
void QuantiseWeights(int row, int column, AttendBuffers& buffers) {
  const FloatTag d;
  const Int16Tag d16;
  const float* weights = buffers.score[row] + column;
  auto largest = hn::Zero(d);
  for (int t = 0; t < kBlockTokens; t += Lanes()) {
    largest =
        hn::Max(largest, hn::Mul(hn::Load(d, weights + t), hn::Load(d, buffers.token_scale + t)));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const float inverse = max > 0 ? kInt16Max / max : 0;
  // Weights too small for their inverse unit to be finite add nothing.
  const bool usable = std::isfinite(inverse);
  const auto factor = hn::Set(d, usable ? inverse : 0);
  auto sum = hn::Zero(d);
  for (int t = 0; t < kBlockTokens; t += Lanes()) {
    const auto weight = hn::Mul(hn::Load(d, weights + t), hn::Load(d, buffers.token_scale + t));
    const auto rounded = hn::NearestInt(hn::Mul(weight, factor));
    hn::Store(hn::DemoteTo(d16, rounded), d16, buffers.weight[row] + t);
    sum = hn::Add(sum, hn::ConvertTo(d, rounded));
  }
  buffers.weight_unit[row] = usable ? max / kInt16Max : 0;
  buffers.weight_sum[row] += buffers.weight_unit[row] * hn::GetLane(hn::SumOfLanes(d, sum));
}

void AccumulateBlock(const TensorView& v, int block, int rows, int column, AttendBuffers& buffers) {
  const FloatTag d;
  LoadTokenScales(v, block, buffers);
  for (int row = 0; row < rows; ++row) QuantiseWeights(row, column, buffers);
  ValuePanel(v.pattern, v.planes(block), buffers.panel);
  const auto epilogue = [&](int row, int n, auto sums) {
    float* code_sum = buffers.code_sum[row] + n;
    hn::Store(hn::Add(sums, hn::Load(d, code_sum)), d, code_sum);
  };
  const IntegerRows weights{buffers.weight[0], kBlockTokens, buffers.weight_unit, 1, 1,
                            kBlockTokens / 2};
  Multiply(weights, rows, buffers.panel, v.pattern.stored_groups() * kGroupChannels, epilogue);
}

// output = factor * output + scale * (code sums less half their range) + centre * softmax sum, over
// V's places.
void AddOutputs(const Pattern& pattern, int row, float factor, AttendBuffers& buffers) {
  const FloatTag d;
  float* output = buffers.output[row];
  for (int place = 0; place < pattern.groups * kGroupChannels; place += Lanes()) {
    const int width = pattern.width[place / kGroupChannels];
    const auto before = hn::Mul(hn::Load(d, output + place), hn::Set(d, factor));
    auto sum = hn::MulAdd(hn::Load(d, buffers.centre + place), hn::Set(d, buffers.softmax_sum[row]),
                          before);
    if (width > 0) {
      const auto middle = hn::Set(d, HalfAligned(width) * buffers.weight_sum[row]);
      const auto codes = hn::Sub(hn::Load(d, buffers.code_sum[row] + place), middle);
      sum = hn::MulAdd(hn::Load(d, buffers.stored_scale + place), codes, sum);
    }
    hn::Store(sum, d, output + place);
  }
}

void AddPart(const QueryRows& rows, const PartView& part, uint64_t position, int first, int count,
             AttendBuffers& buffers) {
  // Where a row's visible range lies among the part's tokens; rows are in order of position.
  const int64_t origin = static_cast<int64_t>(position) - first;
  const auto slot = [&](uint64_t bound) {
    return static_cast<int>(
        std::clamp<int64_t>(static_cast<int64_t>(bound) - origin, first, first + count));
  };
  const int seen_begin = slot(rows.begin[0]);
  const int seen_end = slot(rows.end[rows.count - 1]);
  if (seen_begin >= seen_end) return;
  const int block_begin = seen_begin / kBlockTokens;
  const int block_end = (seen_end + kBlockTokens - 1) / kBlockTokens;
  const int token_begin = block_begin * kBlockTokens;

  LoadTable(part.k, buffers);
  for (int row = 0; row < rows.count; ++row) {
    buffers.centre_score[row] = CentreScore(buffers.query[row], buffers.centre, rows.head_dim);
    buffers.query_middle[row] = 0;
    for (int group = 0; group < part.k.pattern.stored_groups(); ++group) {
      QuantiseQuery(row, group, part.k.pattern.width[group], buffers);
    }
  }
  for (int block = block_begin; block < block_end; ++block) {
    ScoreBlock(part.k, block, rows.count, block * kBlockTokens - token_begin, buffers);
  }

  float factor[kQueryRowsMax];
  for (int row = 0; row < rows.count; ++row) {
    const WeightSums sums =
        ScoresToWeights(buffers.score[row], (block_end - block_begin) * kBlockTokens,
                        slot(rows.begin[row]) - token_begin, slot(rows.end[row]) - token_begin,
                        rows.soft_cap, buffers.state[row]);
    factor[row] = sums.factor;
    buffers.softmax_sum[row] = sums.added;
    buffers.weight_sum[row] = 0;
    memset(buffers.code_sum[row], 0, sizeof(buffers.code_sum[row]));
  }

  LoadTable(part.v, buffers);
  for (int block = block_begin; block < block_end; ++block) {
    AccumulateBlock(part.v, block, rows.count, block * kBlockTokens - token_begin, buffers);
  }
  for (int row = 0; row < rows.count; ++row) AddOutputs(part.v.pattern, row, factor[row], buffers);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot::planes
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvdepot::planes {

HWY_EXPORT(AddPart);

HeadAttention::HeadAttention() : buffers_(std::make_unique<AttendBuffers>()) {}
HeadAttention::~HeadAttention() = default;

void HeadAttention::Begin(const QueryRows& rows, const HeadLayout& layout) {
  rows_ = rows;
  layout_ = &layout;
  for (int row = 0; row < rows.count; ++row) {
    const float* query = rows.q + row * rows.head_dim;
    for (int place = 0; place < rows.head_dim; ++place) {
      buffers_->query[row][PairOrder(place)] = query[layout.k.order[static_cast<size_t>(place)]];
    }
    memset(buffers_->output[row], 0, sizeof(buffers_->output[row]));
    buffers_->state[row] = SoftmaxState();
  }
}

void HeadAttention::Add(const PartView& part, uint64_t position, int first, int count) {
  HWY_DYNAMIC_DISPATCH(AddPart)(rows_, part, position, first, count, *buffers_);
}

void HeadAttention::Finish(const RowResults& results) {
  for (int row = 0; row < rows_.count; ++row) {
    const MergeFactors factors = MergeInto(results.state[row], buffers_->state[row]);
    float* output = results.output + row * rows_.head_dim;
    for (int place = 0; place < rows_.head_dim; ++place) {
      float& value = output[layout_->v.order[static_cast<size_t>(place)]];
      value = value * factors.a + buffers_->output[row][place] * factors.b;
    }
  }
}

}  // namespace kvdepot::planes
#endif  // HWY_ONCE
