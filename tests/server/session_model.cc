#include "tests/server/session_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu/check.h"

namespace kvdepot {

std::vector<float> RandomValues(std::mt19937& random, size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

ModelTokens RandomTokens(std::mt19937& random, const LayerShape& shape, uint64_t token_count) {
  const size_t values = token_count * shape.row_values();
  ModelTokens tokens;
  tokens.k = RandomValues(random, values);
  tokens.v = RandomValues(random, values);
  return tokens;
}

absl::string_view BytesOf(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::vector<float> FloatsOf(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

ModelTokens LayerModel::Slice(uint64_t position, uint64_t token_count) const {
  const auto slice = [&](const std::vector<float>& from) {
    const auto begin = from.begin() + static_cast<std::ptrdiff_t>(position * shape_.row_values());
    return std::vector<float>(
        begin, begin + static_cast<std::ptrdiff_t>(token_count * shape_.row_values()));
  };
  return {slice(tokens_.k), slice(tokens_.v)};
}

void LayerModel::Append(uint64_t position, const ModelTokens& tokens) {
  KVDEPOT_CHECK(position <= token_count());
  const size_t skip = std::min((token_count() - position) * shape_.row_values(), tokens.k.size());
  const auto offset = static_cast<std::ptrdiff_t>(skip);
  tokens_.k.insert(tokens_.k.end(), tokens.k.begin() + offset, tokens.k.end());
  tokens_.v.insert(tokens_.v.end(), tokens.v.begin() + offset, tokens.v.end());
}

void LayerModel::Truncate(uint64_t token_count) {
  const size_t values = token_count * shape_.row_values();
  tokens_.k.resize(std::min(values, tokens_.k.size()));
  tokens_.v.resize(tokens_.k.size());
}

std::vector<double> LayerModel::Attend(const std::vector<float>& q, uint64_t query_position) const {
  const size_t dim = static_cast<size_t>(shape_.head_dim);
  const size_t heads = static_cast<size_t>(shape_.query_heads);
  const uint64_t window = static_cast<uint64_t>(shape_.sliding_window);
  std::vector<double> output;
  for (size_t row = 0; row < q.size() / dim; ++row) {
    const uint64_t end = query_position + row / heads + 1;
    const uint64_t begin = window > 0 && end > window ? end - window : 0;
    const size_t kv_head = row % heads / static_cast<size_t>(shape_.queries_per_kv_head());
    const std::vector<double> values = AttendRow(&q[row * dim], kv_head, begin, end);
    output.insert(output.end(), values.begin(), values.end());
  }
  return output;
}

std::vector<double> LayerModel::AttendRow(const float* q, size_t kv_head, uint64_t begin,
                                          uint64_t end) const {
  const size_t dim = static_cast<size_t>(shape_.head_dim);
  std::vector<double> logits;
  for (uint64_t t = begin; t < end; ++t) {
    const float* k = &tokens_.k[t * shape_.row_values() + kv_head * dim];
    double dot = 0;
    for (size_t c = 0; c < dim; ++c) dot += static_cast<double>(q[c]) * k[c];
    dot /= std::sqrt(static_cast<double>(dim));
    if (shape_.soft_cap > 0) dot = shape_.soft_cap * std::tanh(dot / shape_.soft_cap);
    logits.push_back(dot);
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> output(dim);
  double sum = 0;
  for (uint64_t t = begin; t < end; ++t) {
    const double weight = std::exp(logits[t - begin] - largest);
    const float* v = &tokens_.v[t * shape_.row_values() + kv_head * dim];
    sum += weight;
    for (size_t c = 0; c < dim; ++c) output[c] += weight * v[c];
  }
  for (double& value : output) value /= sum;
  return output;
}

}  // namespace kvdepot
