#include "gpu/packkv/normalize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "gpu/numeric.h"
#include "gpu/shape.h"

namespace kvdepot::packkv {
namespace {

// So that a decoded value, half of the largest step away, stays finite.
constexpr float kMagnitudeMax = std::numeric_limits<float>::max() / 16;
constexpr float kScaleMin = std::numeric_limits<float>::min();
// Of a head's largest weight: a channel that no query uses still has a finite scale.
constexpr float kWeightMin = 1e-6f;

// Sum of `term` over all tokens, for each of `width` channels: token after token within a block,
// then block after block, so that every machine adds in the same order.
template <class Term>
std::vector<float> SumOverTokens(const BlockValues& blocks, size_t width, const Term& term) {
  std::vector<float> sums(width);
  for (const std::vector<float>& block : blocks) {
    std::vector<float> block_sums(width);
    for (size_t at = 0; at < block.size(); at += width) {
      for (size_t i = 0; i < width; ++i) block_sums[i] += term(block[at + i], i);
    }
    for (size_t i = 0; i < width; ++i) sums[i] += block_sums[i];
  }
  return sums;
}

// sqrt(w) of every channel, w held above a part of its head's largest; 1 for a head without any.
std::vector<float> RootsOf(absl::Span<const float> weights, size_t head_dim) {
  std::vector<float> roots(weights.size(), 1.0f);
  for (size_t head = 0; head < weights.size(); head += head_dim) {
    const absl::Span<const float> of_head = weights.subspan(head, head_dim);
    const float least = *std::max_element(of_head.begin(), of_head.end()) * kWeightMin;
    if (!(least > 0)) continue;
    for (size_t c = 0; c < head_dim; ++c) {
      roots[head + c] = std::sqrt(std::max(of_head[c], least));
    }
  }
  return roots;
}

}  // namespace

absl::optional<ChannelTable> MeasureChannels(const BlockValues& blocks, size_t head_dim,
                                             absl::Span<const float> weights) {
  const size_t width = blocks[0].size() / kBlockTokens;
  for (const std::vector<float>& block : blocks) {
    for (const float value : block) {
      if (std::fabs(value) > kMagnitudeMax) return absl::nullopt;
    }
  }
  const float tokens = static_cast<float>(blocks.size() * kBlockTokens);
  ChannelTable table;
  for (const float sum : SumOverTokens(blocks, width, [](float x, size_t) { return x; })) {
    table.centre.push_back(FloatToBf16(sum / tokens));
  }
  const std::vector<float> squares = SumOverTokens(blocks, width, [&table](float x, size_t i) {
    const float distance = x - Bf16ToFloat(table.centre[i]);
    return distance * distance;
  });
  const std::vector<float> roots = RootsOf(weights, head_dim);
  for (size_t i = 0; i < width; ++i) {
    float scale = std::sqrt(squares[i] / tokens);
    if (!roots.empty()) scale = std::sqrt(scale / roots[i]);
    table.scale.push_back(FloatToBf16(std::max(scale, kScaleMin)));
    // Sums of large values, or of their squares, are not.
    if (!std::isfinite(Bf16ToFloat(table.centre[i])) || !std::isfinite(Bf16ToFloat(table.scale[i])))
      return absl::nullopt;
  }
  return table;
}

void Normalize(const ChannelTable& table, BlockValues* blocks) {
  const size_t width = table.centre.size();
  for (std::vector<float>& block : *blocks) {
    for (size_t at = 0; at < block.size(); at += width) {
      for (size_t i = 0; i < width; ++i) {
        block[at + i] =
            (block[at + i] - Bf16ToFloat(table.centre[i])) / Bf16ToFloat(table.scale[i]);
      }
    }
  }
}

}  // namespace kvdepot::packkv
