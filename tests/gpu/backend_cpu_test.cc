#include "tests/gpu/backend_contract.h"
#include "tests/gpu/golden_contract.h"
#include "tests/gpu/packkv_contract.h"
#include "tests/gpu/vector_targets.h"

namespace kvdepot {
namespace {

constexpr BackendUnderTest kCpu = {+[] { return MakeCpuBackend(2); }, 3e-4, 1e-3};
INSTANTIATE_TEST_SUITE_P(Cpu, BackendContractTest, ::testing::Values(kCpu));
INSTANTIATE_TEST_SUITE_P(Cpu, GoldenContractTest, ::testing::Values(kCpu));
INSTANTIATE_TEST_SUITE_P(Cpu, PackKvContractTest, ::testing::Values(kCpu));

// Batches do not change how the CPU splits an item.
TEST(BackendCpuTest, RaggedBatchEqualsItsItemsOneByOneBitForBit) {
  const auto backend = MakeCpuBackend(2);
  const RaggedBatch batch(*backend);
  const std::vector<AttendOutcome> together = batch.Attend(*backend);
  for (size_t i = 0; i < batch.size(); ++i) {
    AttendOutcome alone;
    const AttendItem single = batch.Item(i, alone);
    ASSERT_TRUE(backend->Attend({&single, 1}).ok());
    EXPECT_EQ(alone.output, together[i].output) << i;
    EXPECT_EQ(alone.log_sum_exp, together[i].log_sum_exp) << i;
  }
}

// The kernels' own differences between instruction sets, on one batch.
TEST(BackendCpuTest, EveryVectorTargetKeepsTheErrorBound) {
  ForEachVectorTarget([] {
    std::mt19937 random(3);
    const auto backend = MakeCpuBackend(1);
    for (const int head_dim : {64, 128, 256}) {
      const LayerShape shape{2, 14, head_dim, 0, 0};
      const RandomTokens input(shape, DType::kFp16, 1500, 1, random);
      const LayerCalibration calibration = RandomCalibration(shape, random);
      StoredLayer layer(*backend, shape, DType::kFp16, Codec::kPlanes, &calibration);
      layer.Store(input.host(), 1024, 64);
      std::vector<float> k, v;
      layer.Values(k, v);
      AttendOutcome outcome;
      const AttendItem item = MakeItem(shape, DType::kFp16, &calibration, layer.runs(), 0, 1499,
                                       input.q_bytes, outcome);
      ASSERT_TRUE(backend->Attend({&item, 1}).ok());
      const ReferenceOutput expected =
          ReferenceAttention(shape, k, v, 0, input.q_values, 1499, item.scale);
      EXPECT_LE(WorstRelativeError(expected, outcome.output, head_dim), 3e-4);
    }
  });
}

TEST(BackendCpuTest, ThreadsDoNotChangeABit) {
  std::mt19937 random(4);
  const LayerShape shape{2, 12, 128, 0, 0};
  const RandomTokens input(shape, DType::kBf16, 20000, 1, random);
  const LayerCalibration calibration = RandomCalibration(shape, random);
  std::vector<AttendOutcome> outcomes(2);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const auto backend = MakeCpuBackend(i == 0 ? 1 : 4);
    StoredLayer layer(*backend, shape, DType::kBf16, Codec::kPlanes, &calibration);
    layer.Store(input.host(), 1024, 64);
    const AttendItem item = MakeItem(shape, DType::kBf16, &calibration, layer.runs(), 0, 19999,
                                     input.q_bytes, outcomes[i]);
    ASSERT_TRUE(backend->Attend({&item, 1}).ok());
  }
  EXPECT_EQ(outcomes[0].output, outcomes[1].output);
  EXPECT_EQ(outcomes[0].log_sum_exp, outcomes[1].log_sum_exp);
}

}  // namespace
}  // namespace kvdepot
