// Random layers, their queries and what attention gave, for tests of backends.
#ifndef KVDEPOT_TESTS_GPU_RANDOM_LAYER_H_
#define KVDEPOT_TESTS_GPU_RANDOM_LAYER_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <random>
#include <vector>

#include "gpu/backend.h"
#include "gpu/check.h"
#include "tests/gpu/attend_reference.h"
#include "tests/gpu/golden_case.h"
#include "tests/gpu/stored_layer.h"

namespace kvdepot {

// Random tokens and queries of one layer, in dtype and as the fp32 values that the dtype holds.
struct RandomTokens {
  RandomTokens(const LayerShape& shape, DType dtype, int tokens, int queries,
               std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> k_centre(shape.row_values());
    std::vector<float> k_scale(shape.row_values());
    for (float& c : k_centre) c = 2 * normal(random);
    for (float& s : k_scale) s = std::exp(0.7f * normal(random));
    const size_t count = static_cast<size_t>(tokens) * shape.row_values();
    std::vector<float> k(count);
    std::vector<float> v(count);
    for (size_t i = 0; i < count; ++i) {
      const size_t c = i % shape.row_values();
      k[i] = k_centre[c] + k_scale[c] * normal(random);
      v[i] = normal(random);
    }
    std::vector<float> q(static_cast<size_t>(queries * shape.query_heads * shape.head_dim));
    for (float& value : q) value = normal(random);
    k_bytes = ToBytes(k, dtype);
    v_bytes = ToBytes(v, dtype);
    q_bytes = ToBytes(q, dtype);
    q_values = ToFloats(q_bytes, dtype);
    count_tokens = tokens;
  }
  DenseTokens host() const { return {k_bytes.data(), v_bytes.data(), count_tokens}; }

  std::vector<std::byte> k_bytes, v_bytes, q_bytes;
  std::vector<float> q_values;
  int count_tokens = 0;
};

// A client's bytes in memory of a backend's device.
class DeviceBytes {
 public:
  DeviceBytes(Backend& backend, const std::vector<std::byte>& bytes)
      : backend_(backend), size_bytes_(bytes.size()) {
    auto memory = backend.Allocate("client", ExtentUse::kTail, bytes.size());
    KVDEPOT_CHECK(memory.ok());
    memory_ = *std::move(memory);
    backend.WriteBytes(bytes.data(), bytes.size(), data());
  }
  std::byte* data() const { return memory_->data(); }
  std::vector<std::byte> Read() const {
    std::vector<std::byte> bytes(size_bytes_);
    backend_.ReadBytes(data(), size_bytes_, bytes.data());
    return bytes;
  }

 private:
  Backend& backend_;
  const size_t size_bytes_;
  std::unique_ptr<Extent> memory_;
};

struct AttendOutcome {
  std::vector<float> output;
  std::vector<float> log_sum_exp;
};

inline AttendItem MakeItem(const LayerShape& shape, DType dtype,
                           const LayerCalibration* calibration, const std::vector<TokenRun>& runs,
                           uint64_t first_position, uint64_t query_position,
                           const std::vector<std::byte>& q, AttendOutcome& outcome) {
  AttendItem item;
  item.shape = shape;
  item.dtype = dtype;
  item.calibration = calibration;
  item.runs = runs;
  item.first_position = first_position;
  item.query_position = query_position;
  item.query_tokens = static_cast<int>(q.size() / DTypeBytes(dtype) /
                                       static_cast<size_t>(shape.query_heads * shape.head_dim));
  item.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
  item.q = q.data();
  outcome.output.assign(static_cast<size_t>(item.query_tokens * shape.query_heads * shape.head_dim),
                        NAN);
  outcome.log_sum_exp.assign(static_cast<size_t>(item.query_tokens * shape.query_heads), NAN);
  item.output = outcome.output.data();
  item.log_sum_exp = outcome.log_sum_exp.data();
  return item;
}

// Largest relative error over rows, L2 over channels.
inline double WorstRelativeError(const ReferenceOutput& expected, const std::vector<float>& actual,
                                 int head_dim) {
  double worst = 0;
  const size_t dim = static_cast<size_t>(head_dim);
  for (size_t row = 0; row < actual.size() / dim; ++row) {
    double difference = 0;
    double norm = 0;
    for (size_t c = 0; c < dim; ++c) {
      const double e = expected.output[row * dim + c];
      difference += std::pow(e - static_cast<double>(actual[row * dim + c]), 2);
      norm += e * e;
    }
    const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

inline LayerShape RandomShape(std::mt19937& random) {
  LayerShape shape;
  shape.head_dim = 64 << (random() % 3);
  shape.kv_heads = 1 + static_cast<int>(random() % 3);
  shape.query_heads = shape.kv_heads * (1 + static_cast<int>(random() % 16));
  if (random() % 4 == 0) shape.soft_cap = 5 + static_cast<float>(random() % 50);
  return shape;
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_RANDOM_LAYER_H_
