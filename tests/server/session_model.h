// What a layer must hold and what attention over it must give: plain vectors and double precision.
#ifndef KVDEPOT_TESTS_SERVER_SESSION_MODEL_H_
#define KVDEPOT_TESTS_SERVER_SESSION_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gpu/shape.h"

namespace kvdepot {

// Tokens of one layer in fp32, [token][kv_head][channel].
struct ModelTokens {
  std::vector<float> k;
  std::vector<float> v;
};
inline bool SameTokens(const ModelTokens& a, const ModelTokens& b) {
  return a.k == b.k && a.v == b.v;
}

// Normally distributed values.
std::vector<float> RandomValues(std::mt19937& random, size_t count);
ModelTokens RandomTokens(std::mt19937& random, const LayerShape& shape, uint64_t token_count);

// The bytes of a vector, valid as long as it is.
absl::string_view BytesOf(const std::vector<float>& values);
std::vector<float> FloatsOf(const std::string& bytes);

// One layer: what was appended, less what was truncated.
class LayerModel {
 public:
  explicit LayerModel(const LayerShape& shape) : shape_(shape) {}

  const LayerShape& shape() const { return shape_; }
  uint64_t token_count() const { return tokens_.k.size() / shape_.row_values(); }
  // Tokens [position, position + token_count).
  ModelTokens Slice(uint64_t position, uint64_t token_count) const;

  // At `position`, which leaves no gap; tokens that are there stay.
  void Append(uint64_t position, const ModelTokens& tokens);
  void Truncate(uint64_t token_count);

  // [query token][query_head][channel] for queries from `query_position` on, scale 1 /
  // sqrt(head_dim).
  std::vector<double> Attend(const std::vector<float>& q, uint64_t query_position) const;

 private:
  // One head of one query token, which sees tokens [begin, end).
  std::vector<double> AttendRow(const float* q, size_t kv_head, uint64_t begin, uint64_t end) const;

  const LayerShape shape_;
  ModelTokens tokens_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_SESSION_MODEL_H_
