#include "client/synthetic_kv.h"

#include <cmath>
#include <random>
#include <vector>

#include "client/kv_arrays.h"

namespace kvdepot {
namespace {

constexpr double kPi = 3.14159265358979323846;

// std::normal_distribution differs between libraries; this does not.
class NormalNumbers {
 public:
  explicit NormalNumbers(uint64_t seed) : bits_(seed) {}

  float Next() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return static_cast<float>(radius * std::cos(2 * kPi * Uniform()));
  }

  std::vector<float> Vector(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = Next();
    return values;
  }

 private:
  // In (0, 1].
  double Uniform() { return (static_cast<double>(bits_() >> 11) + 1) * 0x1p-53; }

  std::mt19937_64 bits_;
};

}  // namespace

SyntheticKv MakeSyntheticKv(const SyntheticShape& shape, uint64_t seed) {
  NormalNumbers numbers(seed);
  const size_t row = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
  const std::vector<float> k_mean = numbers.Vector(row);
  const std::vector<float> v_mean = numbers.Vector(row);
  std::vector<float> spread = numbers.Vector(row);
  for (float& value : spread) value = std::exp(0.5f * value);

  std::vector<float> k = numbers.Vector(row * shape.token_count);
  for (size_t i = 0; i < k.size(); ++i) k[i] = k_mean[i % row] + spread[i % row] * k[i];
  std::vector<float> v = numbers.Vector(row * shape.token_count);
  for (size_t i = 0; i < v.size(); ++i) v[i] += v_mean[i % row];
  const std::vector<float> q =
      numbers.Vector(static_cast<size_t>(shape.query_count) * shape.query_heads * shape.head_dim);
  return {Bf16FromFloats(k), Bf16FromFloats(v), Bf16FromFloats(q)};
}

}  // namespace kvdepot
