// The GPU writes the bytes that the CPU writes: more than 10,000 segments of all shapes, patterns
// and kinds of values, encoded a batch a launch. Seeds are fixed; a failure names the case.
#include "gpu/planes/encode_cuda.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>

#include "gpu/checksum_cuda.h"
#include "gpu/device_head.h"
#include "gpu/planes/own_calibration.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"
#include "tests/gpu/planes/encode_cases.h"

namespace kvdepot::planes {
namespace {

constexpr int kBatchSegments = 64;
constexpr size_t kGuardBytes = 128;

template <class Body>
void ParallelFor(int count, const Body& body) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  const int thread_count = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < thread_count; ++i) {
    threads.emplace_back([&] {
      for (int task = next++; task < count; task = next++) body(task);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A batch of segments in device memory. Segments lie one after another with a guard behind each.
class DeviceBatch {
 public:
  explicit DeviceBatch(const std::vector<EncodeCase>& cases) {
    const EncodeCase& first = cases.front();
    std::vector<std::byte> extents;
    std::vector<DeviceHead> heads;
    size_t block_total = 0;
    for (const EncodeCase& input : cases) {
      sizes_.push_back(SegmentBytes(input.shape, input.dtype, Codec::kPlanes, &input.calibration,
                                    input.block_count * kBlockTokens));
      offsets_.push_back(bytes_total_);
      bytes_total_ += sizes_.back() + kGuardBytes;
      for (const auto& block : input.blocks)
        extents.insert(extents.end(), block.begin(), block.end());
      block_total += input.blocks.size();
      heads.resize(heads.size() + static_cast<size_t>(input.shape.kv_heads));
      FillDeviceHeads(input.shape, input.calibration,
                      &heads[heads.size() - static_cast<size_t>(input.shape.kv_heads)]);
    }
    extents_ = std::make_unique<DeviceArray<std::byte>>(extents);
    heads_ = std::make_unique<DeviceArray<DeviceHead>>(heads);
    segments_ = std::make_unique<DeviceArray<std::byte>>(bytes_total_);
    segments_->Fill(0xCC);

    std::vector<const std::byte*> blocks;
    const size_t block_bytes = first.blocks.front().size();
    for (size_t i = 0; i < block_total; ++i) blocks.push_back(extents_->data() + i * block_bytes);
    blocks_ = std::make_unique<DeviceArray<const std::byte*>>(blocks);

    std::vector<SegmentJob> jobs;
    size_t block = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      SegmentJob job{};
      job.blocks = blocks_->data() + block;
      job.heads = heads_->data() + i * static_cast<size_t>(first.shape.kv_heads);
      job.segment = segments_->data() + offsets_[i];
      job.size_bytes = sizes_[i];
      job.block_count = static_cast<uint32_t>(cases[i].block_count);
      memcpy(job.calibration_hash, cases[i].calibration.hash_prefix.data(), 16);
      jobs.push_back(job);
      block += cases[i].blocks.size();
      batch_.block_count_max = std::max(batch_.block_count_max, cases[i].block_count);
      batch_.size_bytes_max = std::max(batch_.size_bytes_max, sizes_[i]);
    }
    jobs_ = std::make_unique<DeviceArray<SegmentJob>>(jobs);
    batch_.kv_heads = first.shape.kv_heads;
    batch_.head_dim = first.shape.head_dim;
    batch_.dtype = first.dtype;
    batch_.jobs = jobs_->data();
    batch_.job_count = static_cast<int>(cases.size());
    out_of_range_ = std::make_unique<DeviceArray<uint32_t>>(cases.size());
    out_of_range_->Fill(0xFF);
    workspace_ = std::make_unique<DeviceArray<std::byte>>(
        ChecksumWorkspaceBytes(batch_.job_count, batch_.size_bytes_max));
  }

  cudaError_t Encode(cudaStream_t stream) {
    return EncodeSegments(batch_, out_of_range_->data(), workspace_->data(), stream);
  }

  const SegmentBatch& batch() const { return batch_; }
  DeviceArray<std::byte>& extents() { return *extents_; }
  std::vector<uint32_t> out_of_range() const { return out_of_range_->Get(); }
  // Segment i of what Get() of the whole returned, with its guard.
  std::vector<std::byte> All() const { return segments_->Get(); }
  size_t offset(size_t i) const { return offsets_[i]; }
  size_t size(size_t i) const { return sizes_[i]; }

 private:
  SegmentBatch batch_;
  std::vector<size_t> sizes_, offsets_;
  size_t bytes_total_ = 0;
  std::unique_ptr<DeviceArray<std::byte>> extents_, segments_, workspace_;
  std::unique_ptr<DeviceArray<const std::byte*>> blocks_;
  std::unique_ptr<DeviceArray<DeviceHead>> heads_;
  std::unique_ptr<DeviceArray<SegmentJob>> jobs_;
  std::unique_ptr<DeviceArray<uint32_t>> out_of_range_;
};

// Compares what the device wrote with the CPU's segments; returns how many became raw.
int ExpectSameSegments(const std::vector<EncodeCase>& cases,
                       const std::vector<std::vector<std::byte>>& expected,
                       const DeviceBatch& device) {
  const std::vector<std::byte> written = device.All();
  const std::vector<uint32_t> out_of_range = device.out_of_range();
  int raw = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::byte* segment = written.data() + device.offset(i);
    EXPECT_EQ(out_of_range[i], expected[i].empty() ? 1u : 0u) << cases[i].name;
    raw += expected[i].empty() ? 1 : 0;
    if (!expected[i].empty() && memcmp(segment, expected[i].data(), expected[i].size()) != 0) {
      const auto at = std::mismatch(expected[i].begin(), expected[i].end(), segment).first;
      ADD_FAILURE() << cases[i].name << ": byte " << at - expected[i].begin() << " of "
                    << expected[i].size();
    }
    for (size_t g = 0; g < kGuardBytes; ++g) {
      if (segment[device.size(i) + g] != std::byte{0xCC}) {
        ADD_FAILURE() << cases[i].name << ": wrote behind its end";
        break;
      }
    }
  }
  return raw;
}

using Geometry = std::tuple<int, DType>;

class EncodeCudaTest : public ::testing::TestWithParam<Geometry> {};

TEST_P(EncodeCudaTest, WritesTheBytesOfTheCpu) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  constexpr int kBatches = 18;
  int raw = 0;
  for (int round = 0; round < kBatches; ++round) {
    const int kv_heads = 1 + round % 3;
    std::vector<EncodeCase> cases(kBatchSegments);
    std::vector<std::vector<std::byte>> expected(kBatchSegments);
    ParallelFor(kBatchSegments, [&, head_dim = head_dim, dtype = dtype](int i) {
      std::mt19937 random(static_cast<unsigned>(1000 * round + i));
      const auto kind = static_cast<Values>(i % static_cast<int>(Values::kCount));
      // One batch in three has short segments only, one has all lengths.
      const unsigned length_max = round % 3 == 0 ? 3 : 16;
      const int blocks = 1 + static_cast<int>(random() % length_max);
      cases[i] = DrawCase(kv_heads, head_dim, dtype, blocks, kind, random);
      expected[i] = EncodeOnCpu(cases[i]);
    });
    DeviceBatch device(cases);
    ASSERT_EQ(device.Encode(nullptr), cudaSuccess);
    raw += ExpectSameSegments(cases, expected, device);
    if (HasFailure()) break;
  }
  EXPECT_GT(raw, 0);
  EXPECT_LT(raw, kBatches * kBatchSegments / 2);
}

TEST_P(EncodeCudaTest, OwnCalibrationIsThatOfTheCpu) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  constexpr int kHeads = 2;
  std::vector<EncodeCase> cases;
  for (int i = 0; i < 2 * static_cast<int>(Values::kCount); ++i) {
    std::mt19937 random(static_cast<unsigned>(i));
    cases.push_back(DrawCase(kHeads, head_dim, dtype, 1 + i % 16,
                             static_cast<Values>(i % static_cast<int>(Values::kCount)), random));
  }
  const DeviceBatch device(cases);
  const size_t per_job = 2 * cases.front().shape.row_values();
  DeviceArray<float> variance(cases.size() * per_job);
  ASSERT_EQ(ChannelVariances(device.batch(), variance.data(), nullptr), cudaSuccess);
  const std::vector<float> all = variance.Get();
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i].name);
    std::vector<const std::byte*> blocks;
    for (const auto& block : cases[i].blocks) blocks.push_back(block.data());
    const SealBlocks source{cases[i].shape, dtype, blocks};
    for (int tensor = 0; tensor < 2 * kHeads; ++tensor) {
      float expected[kHeadDimMax];
      ChannelVariance(TensorBlocksOf(source, tensor / 2, tensor % 2 == 0), expected);
      EXPECT_EQ(memcmp(expected, &all[i * per_job + static_cast<size_t>(tensor * head_dim)],
                       static_cast<size_t>(head_dim) * sizeof(float)),
                0);
    }
    const LayerCalibration own = CalibrationOf(cases[i].shape, Profile::kCompact,
                                               absl::MakeSpan(&all[i * per_job], per_job), {});
    EXPECT_EQ(own.hash_prefix, DeriveCalibration(source, Profile::kCompact, {}).hash_prefix);
  }
}

TEST_P(EncodeCudaTest, CapturedGraphReadsWhatLiesThereWhenItRuns) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  std::mt19937 random(7);
  std::vector<EncodeCase> cases;
  for (int blocks : {16, 5, 1})
    cases.push_back(DrawCase(2, head_dim, dtype, blocks, Values::kSpreadChannels, random));
  DeviceBatch device(cases);

  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(device.Encode(stream), cudaSuccess);
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);

  for (int round = 0; round < 2; ++round) {
    std::vector<std::byte> extents;
    std::vector<std::vector<std::byte>> expected;
    for (EncodeCase& input : cases) {
      EncodeCase other = DrawCase(2, head_dim, dtype, input.block_count, Values::kGrid, random);
      input.blocks = other.blocks;
      for (const auto& block : input.blocks)
        extents.insert(extents.end(), block.begin(), block.end());
      expected.push_back(EncodeOnCpu(input));
    }
    device.extents().Set(extents);
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    ExpectSameSegments(cases, expected, device);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

INSTANTIATE_TEST_SUITE_P(Shapes, EncodeCudaTest,
                         ::testing::Combine(::testing::Values(64, 128, 256),
                                            ::testing::Values(DType::kBf16, DType::kFp16,
                                                              DType::kFp32)),
                         [](const auto& geometry) {
                           return "HeadDim" + std::to_string(std::get<0>(geometry.param)) +
                                  "DType" +
                                  std::to_string(static_cast<int>(std::get<1>(geometry.param)));
                         });

}  // namespace
}  // namespace kvdepot::planes
