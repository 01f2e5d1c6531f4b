// The GPU writes the bytes that the CPU writes: about 3,000 segments of all shapes, options and
// kinds of values, encoded a batch a launch. Seeds are fixed; a failure names the case.
#include "gpu/packkv/encode_cuda.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "gpu/backend.h"
#include "gpu/packkv/body.h"
#include "gpu/scalar.h"
#include "gpu/segment_header.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"

namespace kvdepot::packkv {
namespace {

constexpr size_t kGuardBytes = 256;
constexpr std::byte kGuard{0xCC};

enum class Values {
  kNormal,
  kChannelMeans,    // that are far larger than what tokens differ by
  kHeavyTails,      // cubes
  kOutliers,        // one value in 500 is a thousand times larger
  kConstantTokens,  // all of a token's values alike, often zero
  kFarFromZero,     // so that the magnitude sets the step
  kSpreadTokens,    // norms from 2^-40 to 1
  kGrid,            // multiples of 1/4: ties in quantising and among medians
  kTiny,            // about where the type ends
  kHuge,            // up to the end of the codec's range
  kOutOfRange,      // one value beyond it, where the type has any
  kCount,
};

float TypeMax(DType dtype) {
  if (dtype == DType::kFp16) return 65504;
  return std::numeric_limits<float>::max() * 0.99f;  // less than the largest bf16
}

// An exact extent of one block.
std::vector<std::byte> DrawBlock(const LayerShape& shape, DType dtype, Values kind,
                                 std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  const size_t dim = static_cast<size_t>(shape.head_dim);
  const size_t heads = static_cast<size_t>(shape.kv_heads);
  const float codec_max = std::min(TypeMax(dtype), 0.99f * std::numeric_limits<float>::max() / 4);
  const float tiny = dtype == DType::kFp16 ? 1e-6f : 1e-38f;
  std::vector<float> of_token(2 * kBlockTokens);
  for (float& value : of_token) value = random() % 3 == 0 ? 0 : 100 * normal(random);
  std::vector<float> norm_of_token(2 * kBlockTokens);
  for (float& norm : norm_of_token) norm = std::exp2(-40 * uniform(random));
  std::vector<float> mean(2 * heads * dim);
  for (float& value : mean) value = 20 * normal(random);

  const size_t value_bytes = DTypeBytes(dtype);
  std::vector<std::byte> block(2 * heads * kBlockTokens * dim * value_bytes);
  for (size_t i = 0; i < block.size() / value_bytes; ++i) {
    const size_t tile = i / dim / kBlockTokens;
    const size_t token = kBlockTokens * (tile % 2) + i / dim % kBlockTokens;
    float value = normal(random);
    switch (kind) {
      case Values::kChannelMeans:
        value += mean[tile * dim + i % dim];
        break;
      case Values::kHeavyTails:
        value = value * value * value;
        break;
      case Values::kOutliers:
        if (random() % 500 == 0) value *= 1000;
        break;
      case Values::kConstantTokens:
        value = of_token[token];
        break;
      case Values::kFarFromZero:
        value = 1000 + 0.01f * value;
        break;
      case Values::kSpreadTokens:
        value *= norm_of_token[token];
        break;
      case Values::kGrid:
        value = std::round(4 * value) / 4;
        break;
      case Values::kTiny:
        value *= tiny;
        break;
      case Values::kHuge:
        value = (2 * uniform(random) - 1) * codec_max;
        break;
      default:
        break;
    }
    StoreScalar(value, dtype, block.data() + i * value_bytes);
  }
  if (kind == Values::kOutOfRange) {
    const size_t at = random() % (block.size() / value_bytes);
    StoreScalar(TypeMax(dtype), dtype, block.data() + at * value_bytes);
  }
  return block;
}

struct EncodeCase {
  LayerShape shape;
  DType dtype = DType::kBf16;
  std::vector<std::vector<std::byte>> blocks;
  std::string name;

  SealBlocks Source(std::vector<const std::byte*>* pointers) const {
    for (const auto& block : blocks) pointers->push_back(block.data());
    return {shape, dtype, *pointers};
  }
  int block_count() const { return static_cast<int>(blocks.size()); }
};

EncodeCase DrawCase(int kv_heads, int head_dim, DType dtype, int blocks, Values kind,
                    unsigned seed) {
  EncodeCase drawn;
  drawn.shape = {kv_heads, kv_heads, head_dim, 0, 0};
  drawn.dtype = dtype;
  std::mt19937 random(seed);
  for (int i = 0; i < blocks; ++i)
    drawn.blocks.push_back(DrawBlock(drawn.shape, dtype, kind, random));
  drawn.name = "heads " + std::to_string(kv_heads) + ", blocks " + std::to_string(blocks) +
               ", values " + std::to_string(static_cast<int>(kind)) + ", seed " +
               std::to_string(seed);
  return drawn;
}

using Body = absl::optional<std::vector<std::byte>>;

Body EncodeOnCpu(const EncodeCase& input, const Options& options) {
  std::vector<const std::byte*> pointers;
  return EncodeBody(input.Source(&pointers), options);
}

// Segments in device memory, each with room for the largest body and a guard behind it.
class DeviceBatch {
 public:
  DeviceBatch(const std::vector<EncodeCase>& cases, const Options& options) : options_(options) {
    const EncodeCase& first = cases.front();
    header_bytes_ = SegmentHeaderBytes(first.shape.kv_heads);
    std::vector<std::byte> extents;
    size_t total = 0;
    for (const EncodeCase& input : cases) {
      for (const auto& block : input.blocks)
        extents.insert(extents.end(), block.begin(), block.end());
      begins_.push_back(total);
      sizes_.push_back(header_bytes_ + BodyBytesMax(input.shape, options, input.block_count()));
      total += (sizes_.back() + kGuardBytes + 127) / 128 * 128;
      batch_.block_count_max = std::max(batch_.block_count_max, input.block_count());
    }
    extents_ = std::make_unique<DeviceArray<std::byte>>(extents);
    segments_ = std::make_unique<DeviceArray<std::byte>>(total);
    segments_->Fill(static_cast<int>(kGuard));

    const size_t block_bytes = first.blocks.front().size();
    std::vector<const std::byte*> blocks;
    for (size_t at = 0; at < extents.size(); at += block_bytes)
      blocks.push_back(extents_->data() + at);
    blocks_ = std::make_unique<DeviceArray<const std::byte*>>(blocks);
    std::vector<SegmentJob> jobs;
    size_t block = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      SegmentJob job{};
      job.blocks = blocks_->data() + block;
      job.segment = segments_->data() + begins_[i];
      job.block_count = static_cast<uint32_t>(cases[i].block_count());
      jobs.push_back(job);
      block += cases[i].blocks.size();
    }
    jobs_ = std::make_unique<DeviceArray<SegmentJob>>(jobs);
    batch_.kv_heads = first.shape.kv_heads;
    batch_.head_dim = first.shape.head_dim;
    batch_.dtype = first.dtype;
    batch_.jobs = jobs_->data();
    batch_.job_count = static_cast<int>(cases.size());
    out_of_range_ = std::make_unique<DeviceArray<uint32_t>>(cases.size());
    out_of_range_->Fill(0xFF);
    body_bytes_ = std::make_unique<DeviceArray<uint64_t>>(cases.size());
    body_bytes_->Fill(0xFF);
    workspace_bytes_ = EncodeWorkspaceBytes(batch_, options);
    workspace_ = std::make_unique<DeviceArray<std::byte>>(workspace_bytes_ + kGuardBytes);
    workspace_->Fill(static_cast<int>(kGuard));
  }

  cudaError_t Encode(cudaStream_t stream) {
    return EncodeBodies(batch_, options_, header_bytes_, out_of_range_->data(), body_bytes_->data(),
                        workspace_->data(), stream);
  }
  DeviceArray<std::byte>& extents() { return *extents_; }

  // Compares what the device wrote with the CPU's bodies; returns how many became raw.
  int ExpectBodies(const std::vector<EncodeCase>& cases, const std::vector<Body>& expected) const {
    const std::vector<std::byte> written = segments_->Get();
    const std::vector<uint32_t> out_of_range = out_of_range_->Get();
    const std::vector<uint64_t> body_bytes = body_bytes_->Get();
    int raw = 0;
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(cases[i].name);
      EXPECT_EQ(out_of_range[i], expected[i].has_value() ? 0u : 1u);
      EXPECT_EQ(body_bytes[i], expected[i].has_value() ? expected[i]->size() : 0u);
      raw += expected[i].has_value() ? 0 : 1;
      if (!expected[i].has_value()) continue;
      const std::byte* body = written.data() + begins_[i] + header_bytes_;
      const auto at = std::mismatch(expected[i]->begin(), expected[i]->end(), body).first;
      if (at != expected[i]->end()) {
        ADD_FAILURE() << "byte " << at - expected[i]->begin() << " of " << expected[i]->size();
      }
    }
    ExpectGuards();
    return raw;
  }

  // Nothing is written before a body, behind the largest one or behind the workspace.
  void ExpectGuards() const {
    const std::vector<std::byte> written = segments_->Get();
    const auto is_guard = [](std::byte byte) { return byte == kGuard; };
    for (size_t i = 0; i < begins_.size(); ++i) {
      const auto begin = written.begin() + static_cast<ptrdiff_t>(begins_[i]);
      EXPECT_TRUE(std::all_of(begin, begin + static_cast<ptrdiff_t>(header_bytes_), is_guard));
      const auto end = begin + static_cast<ptrdiff_t>(sizes_[i]);
      EXPECT_TRUE(std::all_of(end, end + static_cast<ptrdiff_t>(kGuardBytes), is_guard)) << i;
    }
    const std::vector<std::byte> workspace = workspace_->Get();
    EXPECT_TRUE(std::all_of(workspace.begin() + static_cast<ptrdiff_t>(workspace_bytes_),
                            workspace.end(), is_guard));
  }

 private:
  Options options_;
  size_t header_bytes_;
  SegmentBatch batch_;
  std::vector<size_t> begins_, sizes_;
  size_t workspace_bytes_;
  std::unique_ptr<DeviceArray<std::byte>> extents_, segments_, workspace_;
  std::unique_ptr<DeviceArray<const std::byte*>> blocks_;
  std::unique_ptr<DeviceArray<SegmentJob>> jobs_;
  std::unique_ptr<DeviceArray<uint32_t>> out_of_range_;
  std::unique_ptr<DeviceArray<uint64_t>> body_bytes_;
};

template <class Task>
void ParallelFor(int count, const Task& task) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  const int thread_count = static_cast<int>(std::thread::hardware_concurrency());
  threads.reserve(static_cast<size_t>(thread_count));
  for (int i = 0; i < thread_count; ++i) {
    threads.emplace_back([&] {
      for (int number = next++; number < count; number = next++) task(number);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

constexpr std::pair<float, float> kRelativeScales[] = {
    {0.1f, 0.2f}, {0.05f, 0.05f}, {0.01f, 0.3f}, {0.004f, 0.004f}, {1.0f, 1.0f}};

std::vector<Options> OptionsOf(std::pair<float, float> relative_scales) {
  std::vector<Options> options;
  for (const int pack_tokens : {4, 8, 16}) {
    for (const Repacking repacking : {Repacking::kNone, Repacking::kMedian})
      options.push_back({relative_scales.first, relative_scales.second, pack_tokens, repacking});
  }
  return options;
}

// A segment of every kind, for one launch.
struct Batch {
  static constexpr int kCases = static_cast<int>(Values::kCount);

  Options options;
  std::vector<EncodeCase> cases{kCases};
  std::vector<Body> expected{kCases};

  void Draw(int number, int i, int head_dim, DType dtype) {
    constexpr int kHeads[] = {1, 3, 8, 2};
    constexpr int kBlocks[] = {1, 2, 3, 5, 16};
    const size_t at = static_cast<size_t>(i);
    cases[at] = DrawCase(kHeads[number % 4], head_dim, dtype, kBlocks[(i + number) % 5],
                         static_cast<Values>(i), static_cast<unsigned>(1000 * number + i));
    expected[at] = EncodeOnCpu(cases[at], options);
  }
  std::string name() const {
    return "scales " + std::to_string(options.k_relative_scale) + ", " +
           std::to_string(options.v_relative_scale) + ", pack_tokens " +
           std::to_string(options.pack_tokens) + ", repacking " +
           std::to_string(static_cast<int>(options.repacking));
  }
};

class PackKvEncodeCudaTest : public ::testing::TestWithParam<std::tuple<int, DType>> {};

TEST_P(PackKvEncodeCudaTest, WritesTheBytesOfTheCpu) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  int raw = 0;
  int count = 0;
  for (const auto& scales : kRelativeScales) {
    std::vector<Batch> batches;
    for (const Options& options : OptionsOf(scales)) batches.push_back({options});
    ParallelFor(static_cast<int>(batches.size()) * Batch::kCases,
                [&, head_dim = head_dim, dtype = dtype](int task) {
                  const int batch = task / Batch::kCases;
                  batches[static_cast<size_t>(batch)].Draw(count + batch, task % Batch::kCases,
                                                           head_dim, dtype);
                });
    for (const Batch& batch : batches) {
      SCOPED_TRACE(batch.name());
      DeviceBatch device(batch.cases, batch.options);
      ASSERT_EQ(device.Encode(nullptr), cudaSuccess);
      raw += device.ExpectBodies(batch.cases, batch.expected);
      ++count;
    }
    if (HasFailure()) break;
  }
  // Only fp16 has no value that is out of range.
  EXPECT_EQ(raw, dtype == DType::kFp16 ? 0 : count);
}

// What callers rule out must not write elsewhere all the same.
TEST_P(PackKvEncodeCudaTest, AnyBitsStayInTheSegment) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  std::mt19937 random(5);
  std::vector<EncodeCase> cases;
  for (int i = 0; i < 4; ++i) {
    cases.push_back(DrawCase(2, head_dim, dtype, 1 + i, Values::kNormal, random()));
    for (auto& block : cases.back().blocks) {
      for (size_t at = 0; at < block.size(); at += 1 + random() % (i % 2 == 0 ? 2 : 20000))
        block[at] = static_cast<std::byte>(random() % 4 == 0 ? 0xFF : random());
    }
  }
  for (const auto& scales : kRelativeScales) {
    for (const Options& options : OptionsOf(scales)) {
      DeviceBatch device(cases, options);
      ASSERT_EQ(device.Encode(nullptr), cudaSuccess);
      device.ExpectGuards();
    }
  }
}

TEST_P(PackKvEncodeCudaTest, CapturedGraphReadsWhatLiesThereWhenItRuns) {
  KVDEPOT_REQUIRE_CUDA_DEVICE();
  const auto [head_dim, dtype] = GetParam();
  Options options;
  options.repacking = Repacking::kMedian;
  std::vector<EncodeCase> cases;
  for (const int blocks : {16, 5, 1})
    cases.push_back(DrawCase(2, head_dim, dtype, blocks, Values::kChannelMeans, 6));
  DeviceBatch device(cases, options);

  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(device.Encode(stream), cudaSuccess);
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  for (const Values kind : {Values::kHeavyTails, Values::kOutOfRange, Values::kGrid}) {
    std::vector<std::byte> extents;
    std::vector<Body> expected;
    for (EncodeCase& input : cases) {
      input = DrawCase(2, head_dim, dtype, input.block_count(), kind, 7);
      for (const auto& block : input.blocks)
        extents.insert(extents.end(), block.begin(), block.end());
      expected.push_back(EncodeOnCpu(input, options));
    }
    device.extents().Set(extents);
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    device.ExpectBodies(cases, expected);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

INSTANTIATE_TEST_SUITE_P(Shapes, PackKvEncodeCudaTest,
                         ::testing::Combine(::testing::Values(64, 128, 256),
                                            ::testing::Values(DType::kBf16, DType::kFp16,
                                                              DType::kFp32)),
                         [](const auto& geometry) {
                           return "HeadDim" + std::to_string(std::get<0>(geometry.param)) +
                                  "DType" +
                                  std::to_string(static_cast<int>(std::get<1>(geometry.param)));
                         });

TEST(PackKvEncodeCuda, GreedyRepackingIsRefused) {
  Options options;
  EXPECT_TRUE(EncodesOnCuda(options));
  options.repacking = Repacking::kMedian;
  EXPECT_TRUE(EncodesOnCuda(options));
  options.repacking = Repacking::kGreedy;
  EXPECT_FALSE(EncodesOnCuda(options));
  EXPECT_EQ(EncodeBodies({}, options, 128, nullptr, nullptr, nullptr, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvdepot::packkv
