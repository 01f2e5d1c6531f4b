// What `packkv` with `normalize` takes off the values of a segment first: a centre and a scale of
// every channel, so that channels with a bias or a large spread do not set the step of all.
#ifndef KVDEPOT_GPU_PACKKV_NORMALIZE_H_
#define KVDEPOT_GPU_PACKKV_NORMALIZE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/optional.h"
#include "absl/types/span.h"

namespace kvdepot::packkv {

// K or V of a segment's blocks, each [token][kv_head][channel].
using BlockValues = std::vector<std::vector<float>>;

// In bf16, [kv_head][channel].
struct ChannelTable {
  std::vector<uint16_t> centre;
  std::vector<uint16_t> scale;
};

// A channel's centre is its mean. Its scale is its standard deviation s about that, or with
// `weights` w, [kv_head][channel] or empty, sqrt(s / sqrt(w)): how much an error in a channel costs
// goes with w. gpu/FORMAT.md has the order of operations. None: values, or what becomes of them,
// leave the range in which this works.
absl::optional<ChannelTable> MeasureChannels(const BlockValues& blocks, size_t head_dim,
                                             absl::Span<const float> weights);

// Every value less its centre, by its scale.
void Normalize(const ChannelTable& table, BlockValues* blocks);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_NORMALIZE_H_
