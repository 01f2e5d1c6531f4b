// Working memory of HeadAttention.
#ifndef KVDEPOT_GPU_PLANES_ATTEND_BUFFERS_H_
#define KVDEPOT_GPU_PLANES_ATTEND_BUFFERS_H_

#include <cstdint>

#include "gpu/planes/pattern.h"
#include "gpu/query_rows.h"
#include "gpu/shape.h"

namespace kvdepot::planes {

// Arrays over places of K are in pair order, in which the two places of a pair (panel-inl.h) are
// neighbours.
constexpr int PairOrder(int place) { return place / 4 * 4 + place % 2 * 2 + place % 4 / 2; }

struct AttendBuffers {
  // For all parts of a row group.
  alignas(64) float query[kQueryRowsMax][kHeadDimMax];   // pair order
  alignas(64) float output[kQueryRowsMax][kHeadDimMax];  // V's places
  SoftmaxState state[kQueryRowsMax];

  // For one part. Queries times stored scales in units of query_unit, one unit a group.
  alignas(64) int16_t scaled_query[kQueryRowsMax][kHeadDimMax];
  alignas(64) float score[kQueryRowsMax][kSegmentTokensMax];
  alignas(64) float code_sum[kQueryRowsMax][kHeadDimMax];  // sum over tokens of weight times code
  alignas(64) float stored_scale[kHeadDimMax];             // of K in pair order, then of V
  alignas(64) float centre[kHeadDimMax];
  float query_unit[kQueryRowsMax][kGroupsMax];
  float query_middle[kQueryRowsMax];  // sum of queries times the middles of their code ranges
  float centre_score[kQueryRowsMax];
  float weight_sum[kQueryRowsMax];   // sum of quantised weights
  float softmax_sum[kQueryRowsMax];  // sum of exact weights

  // For one block. Weights times V token scales in units of weight_unit.
  alignas(64) int16_t weight[kQueryRowsMax][kBlockTokens];
  float weight_unit[kQueryRowsMax];
  alignas(64) float token_scale[kBlockTokens];
  alignas(64) uint32_t panel[kHeadDimMax / 2 * kBlockTokens];
};

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ATTEND_BUFFERS_H_
