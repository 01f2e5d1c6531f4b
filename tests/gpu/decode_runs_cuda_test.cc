// Values that the GPU decodes are, bit for bit, those of the CPU: lists of exact, raw and planes
// runs of any range, from and to every type.
#include "gpu/decode_runs_cuda.h"

#include <memory>
#include <random>
#include <tuple>
#include <vector>

#include "gpu/decode_runs_cpu.h"
#include "gpu/device_head.h"
#include "gpu/raw/tokens_cpu.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/planes/encode_cases.h"

namespace kvdepot {
namespace {

using planes::DrawCase;
using planes::EncodeCase;
using planes::EncodeOnCpu;
using planes::Values;

// One run's bytes on the host, and the run without its address.
struct HostRun {
  std::vector<std::byte> bytes;
  TokenRun run;
};

HostRun DrawRun(EncodeCase input, std::mt19937& random) {
  HostRun result;
  const int tokens = input.block_count * kBlockTokens;
  if (random() % 3 == 0) {
    result.bytes = input.blocks.front();
    result.run = {TokenRun::Form::kExact, nullptr, kBlockTokens, 0, kBlockTokens};
  } else {
    result.run = {TokenRun::Form::kPlanes, nullptr, tokens, 0, tokens};
    if (random() % 3 != 0) result.bytes = EncodeOnCpu(input);
    if (result.bytes.empty()) {
      result.run.form = TokenRun::Form::kRaw;
      result.bytes.resize(SegmentBytes(input.shape, input.dtype, Codec::kRaw, nullptr, tokens));
      WriteSegmentHeader(input.shape, input.dtype, Codec::kRaw, nullptr, tokens,
                         result.bytes.size(), result.bytes.data());
      std::vector<const std::byte*> blocks;
      for (const auto& block : input.blocks) blocks.push_back(block.data());
      raw::EncodeSegment({input.shape, input.dtype, blocks},
                         result.bytes.data() + SegmentHeaderBytes(input.shape.kv_heads));
    }
  }
  if (random() % 3 != 0) {
    result.run.first = static_cast<int>(random() % static_cast<unsigned>(result.run.capacity));
    result.run.count =
        1 +
        static_cast<int>(random() % static_cast<unsigned>(result.run.capacity - result.run.first));
  }
  return result;
}

using Types = std::tuple<DType, DType>;

class DecodeRunsCudaTest : public ::testing::TestWithParam<Types> {};

TEST_P(DecodeRunsCudaTest, DecodesTheValuesOfTheCpu) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [from, to] = GetParam();
  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    const int head_dim = 64 << (round % 3);
    const int kv_heads = 1 + static_cast<int>(random() % 3);
    const LayerShape shape{kv_heads, kv_heads, head_dim, 0, 0};
    const LayerCalibration calibration = RandomCalibration(shape, random);
    std::vector<HostRun> host;
    std::vector<std::unique_ptr<DeviceArray<std::byte>>> memory;
    std::vector<TokenRun> host_runs;
    std::vector<DecodeRun> device_runs;
    size_t tokens = 0;
    int run_tokens_max = 0;
    for (unsigned i = 0; i <= random() % 5; ++i) {
      EncodeCase input = DrawCase(kv_heads, head_dim, from, 1 + static_cast<int>(random() % 16),
                                  Values::kNormal, random);
      input.calibration = calibration;
      host.push_back(DrawRun(input, random));
      memory.push_back(std::make_unique<DeviceArray<std::byte>>(host.back().bytes));
      TokenRun run = host.back().run;
      run.data = memory.back()->data();
      device_runs.push_back({run, tokens, nullptr});
      tokens += static_cast<size_t>(run.count);
      run_tokens_max = std::max(run_tokens_max, run.count);
    }
    for (const HostRun& run : host) {
      host_runs.push_back(run.run);
      host_runs.back().data = run.bytes.data();
    }
    const size_t bytes = tokens * shape.row_values() * DTypeBytes(to);
    std::vector<std::byte> k(bytes), v(bytes);
    DecodeRuns(shape, from, &calibration, host_runs, to, k.data(), v.data());

    std::vector<DeviceHead> heads(static_cast<size_t>(kv_heads));
    FillDeviceHeads(shape, calibration, heads.data());
    const DeviceArray<DeviceHead> device_heads(heads);
    const DeviceArray<DecodeRun> runs(device_runs);
    DeviceArray<std::byte> device_k(bytes), device_v(bytes);
    device_k.Fill(0xCC);
    device_v.Fill(0xCC);
    DecodeBatch batch;
    batch.kv_heads = kv_heads;
    batch.head_dim = head_dim;
    batch.dtype = from;
    batch.heads = device_heads.data();
    batch.runs = runs.data();
    batch.run_count = static_cast<int>(device_runs.size());
    batch.run_tokens_max = run_tokens_max;
    batch.to = to;
    batch.k = device_k.data();
    batch.v = device_v.data();
    ASSERT_EQ(DecodeRuns(batch, nullptr), cudaSuccess);
    ASSERT_TRUE(device_k.Get() == k) << "round " << round;
    ASSERT_TRUE(device_v.Get() == v) << "round " << round;
  }
}

constexpr auto kTypes = {DType::kBf16, DType::kFp16, DType::kFp32};
INSTANTIATE_TEST_SUITE_P(Types, DecodeRunsCudaTest,
                         ::testing::Combine(::testing::ValuesIn(kTypes),
                                            ::testing::ValuesIn(kTypes)),
                         [](const auto& types) {
                           return "From" +
                                  std::to_string(static_cast<int>(std::get<0>(types.param))) +
                                  "To" + std::to_string(static_cast<int>(std::get<1>(types.param)));
                         });

}  // namespace
}  // namespace kvdepot
