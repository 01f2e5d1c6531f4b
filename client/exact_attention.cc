#include "client/exact_attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace kvdepot {
namespace {

// exp(s_t - max s) for each token, and max s.
struct Weights {
  std::vector<double> values;
  double max_score = 0;
};

Weights TokenWeights(const KvArrays& kv, int kv_head, const float* q, double scale) {
  Weights weights;
  weights.values.resize(kv.token_count);
  for (int token = 0; token < kv.token_count; ++token) {
    const float* k = &kv.k[kv.At(token, kv_head)];
    double dot = 0;
    for (int channel = 0; channel < kv.head_dim; ++channel) {
      dot += static_cast<double>(q[channel]) * k[channel];
    }
    weights.values[token] = scale * dot;
  }
  weights.max_score = *std::max_element(weights.values.begin(), weights.values.end());
  for (double& value : weights.values) value = std::exp(value - weights.max_score);
  return weights;
}

}  // namespace

ExactOutput ExactAttention(const KvArrays& kv, absl::Span<const float> q, double scale) {
  const int query_heads = static_cast<int>(q.size()) / kv.head_dim;
  ExactOutput result;
  result.output.assign(q.size(), 0.0);
  for (int head = 0; head < query_heads; ++head) {
    const int kv_head = head / (query_heads / kv.kv_heads);
    const size_t first = static_cast<size_t>(head) * kv.head_dim;
    const Weights weights = TokenWeights(kv, kv_head, &q[first], scale);
    double sum = 0;
    for (int token = 0; token < kv.token_count; ++token) {
      sum += weights.values[token];
      const float* v = &kv.v[kv.At(token, kv_head)];
      for (int channel = 0; channel < kv.head_dim; ++channel) {
        result.output[first + channel] += weights.values[token] * v[channel];
      }
    }
    for (int channel = 0; channel < kv.head_dim; ++channel) result.output[first + channel] /= sum;
    result.log_sum_exp.push_back(weights.max_score + std::log(sum));
  }
  return result;
}

double RelativeError(absl::Span<const float> output, absl::Span<const double> exact, int head_dim) {
  double sum = 0;
  const size_t heads = exact.size() / head_dim;
  for (size_t head = 0; head < heads; ++head) {
    double difference = 0;
    double length = 0;
    for (size_t i = head * head_dim; i < (head + 1) * head_dim; ++i) {
      difference += (output[i] - exact[i]) * (output[i] - exact[i]);
      length += exact[i] * exact[i];
    }
    sum += std::sqrt(difference / length);
  }
  return sum / static_cast<double>(heads);
}

}  // namespace kvdepot
