#include "gpu/planes/encode_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu/planes/codec.h"
#include "gpu/planes/pack.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "gpu/planes/encode_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "gpu/load_values-inl.h"
#include "hwy/highway.h"

// Every operation below is one correctly rounded fp32 step: no MulAdd, and sums in the order that
// gpu/FORMAT.md fixes, which is the same for every vector length (vectors run over channels, sums
// over tokens).
HWY_BEFORE_NAMESPACE();
namespace kvdepot::planes {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using kvdepot::HWY_NAMESPACE::LoadValues;

using FloatTag = hn::ScalableTag<float>;

// Per-channel numbers of one tensor, in original channel order.
struct Channels {
  HWY_ALIGN float centre[kHeadDimMax];
  HWY_ALIGN float deviation[kHeadDimMax];
  HWY_ALIGN float sum[kHeadDimMax];
  // Per place's channel: quantiser step, (2^w - 1) / 2 and 2^w - 1. Width 0: step 1, the others 0.
  HWY_ALIGN float step[kHeadDimMax];
  HWY_ALIGN float half[kHeadDimMax];
  HWY_ALIGN float level_max[kHeadDimMax];
};

// sum[c] = block sums added in order, each the sum of term(values, token, channel vector) over its
// tokens in order.
template <DType kDType, class Term>
void SumOverTokens(const TensorBlocks& source, const Term& term, float* HWY_RESTRICT sum) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const size_t head_dim = static_cast<size_t>(source.head_dim);
  std::fill(sum, sum + head_dim, 0.0f);
  for (size_t block = 0; block < source.blocks.size(); ++block) {
    const std::byte* values = source.blocks[block] + source.offset;
    for (size_t c = 0; c < head_dim; c += lanes) {
      auto partial = hn::Zero(d);
      for (size_t t = 0; t < kBlockTokens; ++t) {
        const auto x = LoadValues<kDType>(d, values, t * head_dim + c);
        partial = hn::Add(partial, term(block * kBlockTokens + t, c, x));
      }
      hn::Store(hn::Add(hn::Load(d, sum + c), partial), d, sum + c);
    }
  }
}

bool AllFinite(const float* values, size_t count) {
  return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

// Centres (as stored) and variance sums about them. False if a centre leaves fp16 or a sum
// overflows.
template <DType kDType>
bool CentreAndSquares(const TensorBlocks& source, Channels& channels, uint16_t* centre_fp16) {
  const FloatTag d;
  const size_t head_dim = static_cast<size_t>(source.head_dim);
  const float token_count = static_cast<float>(source.blocks.size() * kBlockTokens);
  SumOverTokens<kDType>(
      source, [](size_t, size_t, auto x) { return x; }, channels.sum);
  bool in_range = true;
  for (size_t c = 0; c < head_dim; ++c) {
    centre_fp16[c] = FloatToFp16(channels.sum[c] / token_count);
    channels.centre[c] = Fp16ToFloat(centre_fp16[c]);
    in_range = in_range && IsFiniteFp16(centre_fp16[c]);
  }
  if (!in_range) return false;
  const auto square = [&](size_t, size_t c, auto x) {
    const auto difference = hn::Sub(x, hn::Load(d, channels.centre + c));
    return hn::Mul(difference, difference);
  };
  SumOverTokens<kDType>(source, square, channels.sum);
  return AllFinite(channels.sum, head_dim);
}

// rms[t] of every token, relative to the channels' deviations.
template <DType kDType>
bool TokenRms(const TensorBlocks& source, const Channels& channels, float* rms) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  const size_t head_dim = static_cast<size_t>(source.head_dim);
  HWY_ALIGN float squares[kHeadDimMax] = {};
  for (size_t t = 0; t < source.blocks.size() * kBlockTokens; ++t) {
    const std::byte* values = source.blocks[t / kBlockTokens] + source.offset;
    for (size_t c = 0; c < head_dim; c += lanes) {
      const auto x = LoadValues<kDType>(d, values, (t % kBlockTokens) * head_dim + c);
      const auto ratio = hn::Div(hn::Sub(x, hn::Load(d, channels.centre + c)),
                                 hn::Load(d, channels.deviation + c));
      hn::Store(hn::Mul(ratio, ratio), d, squares + c);
    }
    // The binary tree of gpu/FORMAT.md.
    size_t half = head_dim / 2;
    for (; half >= lanes; half /= 2) {
      for (size_t c = 0; c < half; c += lanes) {
        hn::Store(hn::Add(hn::Load(d, squares + c), hn::Load(d, squares + c + half)), d,
                  squares + c);
      }
    }
    for (; half >= 1; half /= 2) {
      for (size_t c = 0; c < half; ++c) squares[c] = squares[c] + squares[c + half];
    }
    rms[t] = std::max(std::sqrt(squares[0] / static_cast<float>(head_dim)), kTokenRmsMin);
    if (!std::isfinite(rms[t])) return false;
  }
  return true;
}

// Stored scales and what quantising needs of them. False if they leave the range of fp16.
bool StoredScales(const TensorLayout& layout, const Pattern& pattern, float token_count,
                  Channels& channels, uint16_t* stored_fp16) {
  float largest = 0;
  bool any_spread = false;
  for (int place = 0; place < pattern.groups * kGroupChannels; ++place) {
    const size_t c = layout.order[static_cast<size_t>(place)];
    const int width = pattern.width[place / kGroupChannels];
    const float deviation = std::sqrt(channels.sum[c] / token_count);
    if (!std::isfinite(deviation)) return false;
    any_spread = any_spread || deviation > 0;
    channels.step[c] = 1;
    channels.half[c] = 0;
    channels.level_max[c] = 0;
    stored_fp16[c] = 0;
    if (width == 0) continue;
    const uint16_t scale = FloatToFp16(ClipEighth(width) * deviation);
    if (!IsFiniteFp16(scale)) return false;
    largest = std::max(largest, Fp16ToFloat(scale));
    stored_fp16[c] = std::max(scale, kStoredScaleMinFp16);
    channels.step[c] = Fp16ToFloat(stored_fp16[c]) * StepFactor(width);
    channels.half[c] = HalfLevels(width);
    channels.level_max[c] = LevelMax(width);
  }
  return !any_spread || largest >= kStoredScaleNormalMin;
}

// codes[channel][token] of one block.
template <DType kDType>
void QuantiseBlock(const TensorBlocks& source, size_t block, const Channels& channels,
                   const float* token_scale, uint8_t (*codes)[kBlockTokens]) {
  const FloatTag d;
  const hn::Rebind<int32_t, FloatTag> d32;
  const hn::Rebind<uint8_t, FloatTag> d8;
  const size_t lanes = hn::Lanes(d);
  const size_t head_dim = static_cast<size_t>(source.head_dim);
  const std::byte* values = source.blocks[block] + source.offset;
  HWY_ALIGN uint8_t row[kHeadDimMax];
  for (size_t t = 0; t < kBlockTokens; ++t) {
    const auto scale = hn::Set(d, token_scale[block * kBlockTokens + t]);
    for (size_t c = 0; c < head_dim; c += lanes) {
      const auto x = LoadValues<kDType>(d, values, t * head_dim + c);
      const auto z = hn::Div(hn::Sub(x, hn::Load(d, channels.centre + c)), scale);
      const auto level = hn::Round(
          hn::Add(hn::Div(z, hn::Load(d, channels.step + c)), hn::Load(d, channels.half + c)));
      const auto clamped =
          hn::Min(hn::Max(level, hn::Zero(d)), hn::Load(d, channels.level_max + c));
      hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(d32, clamped)), d8, row + c);
    }
    for (size_t c = 0; c < head_dim; ++c) codes[c][t] = row[c];
  }
}

template <DType kDType>
bool Encode(const TensorBlocks& source, const TensorLayout& layout, const TensorSink& sink) {
  const size_t head_dim = static_cast<size_t>(source.head_dim);
  const size_t token_count = source.blocks.size() * kBlockTokens;
  const float token_count_f = static_cast<float>(token_count);
  const Pattern pattern = PatternOf(sink.is_key, source.head_dim, layout.pattern);
  Channels channels;
  uint16_t centre_fp16[kHeadDimMax];
  uint16_t stored_fp16[kHeadDimMax];
  float rms[kSegmentTokensMax] = {};
  float token_scale[kSegmentTokensMax];
  uint8_t scale_code[kSegmentTokensMax];

  if (!CentreAndSquares<kDType>(source, channels, centre_fp16)) return false;
  for (size_t c = 0; c < head_dim; ++c) {
    channels.deviation[c] = std::max(std::sqrt(channels.sum[c] / token_count_f), kDeviationMin);
  }
  if (!TokenRms<kDType>(source, channels, rms)) return false;
  uint32_t largest = 0;
  for (size_t t = 0; t < token_count; ++t) largest = std::max(largest, RoundedTokenScale(rms[t]));
  for (size_t t = 0; t < token_count; ++t) {
    scale_code[t] = TokenScaleCode(RoundedTokenScale(rms[t]), largest);
    token_scale[t] = TokenScaleValue(scale_code[t]);
  }

  const FloatTag d;
  const auto scaled_square = [&](size_t t, size_t c, auto x) {
    const auto z =
        hn::Div(hn::Sub(x, hn::Load(d, channels.centre + c)), hn::Set(d, token_scale[t]));
    return hn::Mul(z, z);
  };
  SumOverTokens<kDType>(source, scaled_square, channels.sum);
  if (!AllFinite(channels.sum, head_dim)) return false;
  if (!StoredScales(layout, pattern, token_count_f, channels, stored_fp16)) return false;

  WriteTable(source.head_dim, layout, sink.is_key, stored_fp16, centre_fp16, sink.table);
  uint8_t codes[kHeadDimMax][kBlockTokens];
  for (size_t block = 0; block < source.blocks.size(); ++block) {
    std::byte* record = sink.records + block * sink.record_bytes;
    WriteTokenScales(scale_code + block * kBlockTokens, sink.is_key, record);
    QuantiseBlock<kDType>(source, block, channels, token_scale, codes);
    PackBlock(pattern, layout, sink.is_key, codes, record + sink.planes_offset);
  }
  return true;
}

bool EncodeTensor(const TensorBlocks& source, const TensorLayout& layout, const TensorSink& sink) {
  switch (source.dtype) {
    case DType::kBf16:
      return Encode<DType::kBf16>(source, layout, sink);
    case DType::kFp16:
      return Encode<DType::kFp16>(source, layout, sink);
    case DType::kFp32:
      return Encode<DType::kFp32>(source, layout, sink);
  }
  return false;
}

template <DType kDType>
void Variance(const TensorBlocks& source, float* variance) {
  Channels channels;
  uint16_t centre_fp16[kHeadDimMax];
  const bool in_range = CentreAndSquares<kDType>(source, channels, centre_fp16);
  const float token_count = static_cast<float>(source.blocks.size() * kBlockTokens);
  for (int c = 0; c < source.head_dim; ++c)
    variance[c] = in_range ? channels.sum[c] / token_count : 0;
}

void ChannelVariance(const TensorBlocks& source, float* variance) {
  switch (source.dtype) {
    case DType::kBf16:
      return Variance<DType::kBf16>(source, variance);
    case DType::kFp16:
      return Variance<DType::kFp16>(source, variance);
    case DType::kFp32:
      return Variance<DType::kFp32>(source, variance);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot::planes
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvdepot::planes {

HWY_EXPORT(EncodeTensor);
HWY_EXPORT(ChannelVariance);

TensorBlocks TensorBlocksOf(const SealBlocks& source, int head, bool is_key) {
  const size_t tensor_bytes =
      static_cast<size_t>(kBlockTokens * source.shape.head_dim) * DTypeBytes(source.dtype);
  const size_t tensor = 2 * static_cast<size_t>(head) + (is_key ? 0 : 1);
  return {source.dtype, source.shape.head_dim, source.blocks, tensor * tensor_bytes};
}

bool EncodeTensor(const TensorBlocks& source, const TensorLayout& layout, const TensorSink& sink) {
  return HWY_DYNAMIC_DISPATCH(EncodeTensor)(source, layout, sink);
}

void ChannelVariance(const TensorBlocks& source, float* variance) {
  HWY_DYNAMIC_DISPATCH(ChannelVariance)(source, variance);
}

}  // namespace kvdepot::planes
#endif  // HWY_ONCE
