// Attends on the CPU backend on demand: for each line on standard input one attend over the next of
// several layers, whose time in seconds goes to standard output. attend_cpu.py drives it, so that
// it and its opponents take turns.
//
//   attend_cpu_worker TOKENS KV_HEADS QUERY_HEADS HEAD_DIM K_PATTERN V_PATTERN THREADS LAYERS

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "tests/gpu/stored_layer.h"

namespace kvdepot {
namespace {

int Run(char** argv) {
  const int tokens = std::atoi(argv[1]);
  const LayerShape shape{std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), 0, 0};
  const auto backend = MakeCpuBackend(std::atoi(argv[7]));
  const int layer_count = std::atoi(argv[8]);

  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(shape.row_values() * static_cast<size_t>(tokens));
  for (float& value : values) value = normal(random);
  const std::vector<std::byte> bytes = ToBytes(values, DType::kBf16);
  LayerCalibration calibration = RandomCalibration(shape, random);
  for (HeadLayout& head : calibration.heads) {
    head.k.pattern = static_cast<uint8_t>(std::atoi(argv[5]));
    head.v.pattern = static_cast<uint8_t>(std::atoi(argv[6]));
  }
  std::vector<std::unique_ptr<StoredLayer>> layers;
  for (int i = 0; i < layer_count; ++i) {
    layers.push_back(
        std::make_unique<StoredLayer>(*backend, shape, DType::kBf16, Codec::kPlanes, &calibration));
    layers.back()->Store({bytes.data(), bytes.data(), tokens}, kSegmentTokensMax, kBlockTokens);
  }

  const size_t query_values = static_cast<size_t>(shape.query_heads * shape.head_dim);
  const std::vector<std::byte> q(bytes.begin(),
                                 bytes.begin() + static_cast<long>(2 * query_values));
  std::vector<float> output(query_values);
  std::vector<float> log_sum_exp(static_cast<size_t>(shape.query_heads));
  size_t round = 0;
  for (std::string line; std::getline(std::cin, line); ++round) {
    AttendItem item;
    item.shape = shape;
    item.calibration = &calibration;
    item.runs = layers[round % layers.size()]->runs();
    item.query_position = static_cast<uint64_t>(tokens) - 1;
    item.query_tokens = 1;
    item.scale = 0.08f;
    item.q = q.data();
    item.output = output.data();
    item.log_sum_exp = log_sum_exp.data();
    const auto begin = std::chrono::steady_clock::now();
    if (!backend->Attend({&item, 1}).ok()) return 1;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    std::printf("%.9f\n", seconds.count());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  if (argc != 9) {
    std::fprintf(
        stderr,
        "usage: %s TOKENS KV_HEADS QUERY_HEADS HEAD_DIM K_PATTERN V_PATTERN THREADS LAYERS\n",
        argv[0]);
    return 2;
  }
  return kvdepot::Run(argv);
}
