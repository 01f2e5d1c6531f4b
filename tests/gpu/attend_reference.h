// Attention in double precision over values in fp32: what every kernel is held against.
#ifndef KVDEPOT_TESTS_GPU_ATTEND_REFERENCE_H_
#define KVDEPOT_TESTS_GPU_ATTEND_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gpu/shape.h"

namespace kvdepot {

struct ReferenceOutput {
  std::vector<double> output;       // [query token][query_head][channel]
  std::vector<double> log_sum_exp;  // [query token][query_head]
};

// k, v: [token][kv_head][channel], token 0 at position `first_position`. q: [query
// token][query_head][channel].
inline ReferenceOutput ReferenceAttention(const LayerShape& shape, const std::vector<float>& k,
                                          const std::vector<float>& v, uint64_t first_position,
                                          const std::vector<float>& q, uint64_t query_position,
                                          double scale) {
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const size_t tokens = k.size() / shape.row_values();
  const size_t heads = static_cast<size_t>(shape.query_heads);
  const size_t queries = q.size() / (heads * dim);
  ReferenceOutput result;
  for (size_t row = 0; row < queries * heads; ++row) {
    const size_t kv_head = row % heads / static_cast<size_t>(shape.queries_per_kv_head());
    const uint64_t end = query_position + row / heads + 1;
    const uint64_t window = static_cast<uint64_t>(shape.sliding_window);
    const uint64_t begin = window != 0 && end > window ? end - window : 0;
    std::vector<double> logits(tokens, -std::numeric_limits<double>::infinity());
    double max = -std::numeric_limits<double>::infinity();
    for (size_t t = 0; t < tokens; ++t) {
      const uint64_t position = first_position + t;
      if (position < begin || position >= end) continue;
      double dot = 0;
      for (size_t c = 0; c < dim; ++c) {
        dot += static_cast<double>(q[row * dim + c]) *
               static_cast<double>(k[t * shape.row_values() + kv_head * dim + c]);
      }
      dot *= scale;
      if (shape.soft_cap > 0) dot = shape.soft_cap * std::tanh(dot / shape.soft_cap);
      logits[t] = dot;
      max = std::max(max, dot);
    }
    double sum = 0;
    std::vector<double> output(dim, 0);
    for (size_t t = 0; t < tokens && std::isfinite(max); ++t) {
      const double weight = std::exp(logits[t] - max);
      sum += weight;
      for (size_t c = 0; c < dim; ++c) {
        output[c] += weight * static_cast<double>(v[t * shape.row_values() + kv_head * dim + c]);
      }
    }
    for (double& value : output) value = sum > 0 ? value / sum : 0;
    result.output.insert(result.output.end(), output.begin(), output.end());
    result.log_sum_exp.push_back(sum > 0 ? max + std::log(sum)
                                         : -std::numeric_limits<double>::infinity());
  }
  return result;
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_ATTEND_REFERENCE_H_
