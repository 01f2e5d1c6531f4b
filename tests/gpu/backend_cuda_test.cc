// The contract on a GPU, and the CPU's results from it.
#include <algorithm>
#include <cstring>
#include <utility>

#include "tests/gpu/backend_contract.h"
#include "tests/gpu/cuda_device_for_tests.h"
#include "tests/gpu/golden_contract.h"
#include "tests/gpu/packkv_contract.h"

namespace kvdepot {
namespace {

constexpr BackendUnderTest kCuda = {MakeCudaBackendForTests, 5e-4, 2e-3};
INSTANTIATE_TEST_SUITE_P(Cuda, BackendContractTest, ::testing::Values(kCuda));
INSTANTIATE_TEST_SUITE_P(Cuda, GoldenContractTest, ::testing::Values(kCuda));
INSTANTIATE_TEST_SUITE_P(Cuda, PackKvContractTest, ::testing::Values(kCuda));

class BackendCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_ == nullptr) GTEST_SKIP() << "no device";
  }

  // An extent of `size_bytes` on `backend`, which goes with the test.
  std::byte* Allocate(Backend& backend, size_t size_bytes) {
    auto extent = backend.Allocate("tenant", ExtentUse::kTail, size_bytes);
    EXPECT_TRUE(extent.ok()) << extent.status();
    extents_.push_back(*std::move(extent));
    return extents_.back()->data();
  }

  static std::vector<std::byte> Read(Backend& backend, const std::byte* data, size_t size_bytes) {
    std::vector<std::byte> bytes(size_bytes);
    backend.ReadBytes(data, size_bytes, bytes.data());
    return bytes;
  }

  const std::unique_ptr<Backend> cpu_ = MakeCpuBackend(2);
  const std::unique_ptr<Backend> cuda_ = MakeCudaBackendForTests();
  std::vector<std::unique_ptr<Extent>> extents_;
};

// 70 heads of 256 in fp32: more than one staging slot.
TEST_F(BackendCudaTest, TokensLieWhereTheCpuPutsThem) {
  std::mt19937 random(1);
  for (const LayerShape& shape :
       {LayerShape{1, 1, 64, 0, 0}, LayerShape{3, 6, 128, 0, 0}, LayerShape{70, 70, 256, 0, 0}}) {
    for (const DType dtype : {DType::kBf16, DType::kFp32}) {
      const RandomTokens input(shape, dtype, 90, 1, random);
      const size_t bytes = ExactExtentBytes(shape, dtype, 64);
      std::vector<std::vector<std::byte>> contents;
      for (Backend* backend : {cpu_.get(), cuda_.get()}) {
        std::byte* const extent = Allocate(*backend, bytes);
        std::byte* const copy = Allocate(*backend, bytes);
        const std::vector<std::byte> zeros(bytes);
        backend->WriteBytes(zeros.data(), bytes, extent);
        backend->WriteBytes(zeros.data(), bytes, copy);
        backend->WriteTokens(shape, dtype, input.host(), 5, 1, extent, 64, 0);
        backend->WriteTokens(shape, dtype, input.host(), 6, 60, extent, 64, 1);
        backend->CopyTokens(shape, dtype, extent, copy, 64, 33);
        contents.push_back(Read(*backend, extent, bytes));
        contents.push_back(Read(*backend, copy, bytes));
      }
      EXPECT_EQ(contents[0], contents[2]);
      EXPECT_EQ(contents[1], contents[3]);
    }
  }
}

TEST_F(BackendCudaTest, SegmentsAndCalibrationsAreTheSameBytes) {
  for (unsigned round = 0; round < 30; ++round) {
    std::mt19937 random(100 + round);
    const LayerShape shape = RandomShape(random);
    const DType dtype = static_cast<DType>(1 + random() % 3);
    const Profile profile = static_cast<Profile>(random() % kProfileCount);
    const int blocks = 1 + static_cast<int>(random() % 16);
    SCOPED_TRACE(testing::Message() << "round " << round << ", blocks " << blocks << ", head_dim "
                                    << shape.head_dim << ", kv_heads " << shape.kv_heads);
    const RandomTokens input(shape, dtype, blocks * kBlockTokens, 1, random);
    std::vector<LayerCalibration> calibrations;
    std::vector<std::vector<std::byte>> segments;
    for (Backend* backend : {cpu_.get(), cuda_.get()}) {
      std::vector<const std::byte*> extents;
      for (int block = 0; block < blocks; ++block) {
        std::byte* const extent = Allocate(*backend, ExactExtentBytes(shape, dtype, kBlockTokens));
        backend->WriteTokens(shape, dtype, input.host(), block * kBlockTokens, kBlockTokens, extent,
                             kBlockTokens, 0);
        extents.push_back(extent);
      }
      const SealBlocks source{shape, dtype, extents};
      calibrations.push_back(backend->DeriveCalibrations({{source, profile, {}}})[0]);
      for (const Codec codec : {Codec::kPlanes, Codec::kRaw}) {
        const LayerCalibration* const calibration =
            codec == Codec::kPlanes ? &calibrations.back() : nullptr;
        const size_t bytes = SegmentBytes(shape, dtype, codec, calibration, blocks * kBlockTokens);
        std::byte* const segment = Allocate(*backend, bytes);
        ASSERT_TRUE(EncodeOne(*backend, source, codec, calibration, segment));
        segments.push_back(Read(*backend, segment, bytes));
      }
    }
    for (size_t head = 0; head < calibrations[0].heads.size(); ++head) {
      const HeadLayout& a = calibrations[0].heads[head];
      const HeadLayout& b = calibrations[1].heads[head];
      EXPECT_EQ(a.k.order, b.k.order);
      EXPECT_EQ(a.v.order, b.v.order);
    }
    EXPECT_EQ(calibrations[0].hash_prefix, calibrations[1].hash_prefix);
    EXPECT_EQ(segments[0], segments[2]) << "planes";
    EXPECT_EQ(segments[1], segments[3]) << "raw";
  }
}

// Layers of 8 heads of 256 in fp32 come in several pieces.
TEST_F(BackendCudaTest, DecodesToTheSameValuesFromAnyTokenOn) {
  for (unsigned round = 0; round < 20; ++round) {
    std::mt19937 random(200 + round);
    LayerShape shape = RandomShape(random);
    const DType dtype = static_cast<DType>(1 + random() % 3);
    DType to = static_cast<DType>(1 + random() % 3);
    if (round % 7 == 0) {
      shape = {8, 8, 256, 0, 0};
      to = DType::kFp32;
    }
    const Codec codec = round % 4 == 0 ? Codec::kRaw : Codec::kPlanes;
    const RandomTokens input(shape, dtype, 2500, 1, random);
    const LayerCalibration calibration = RandomCalibration(shape, random);
    const size_t bytes = input.k_bytes.size() / DTypeBytes(dtype) * DTypeBytes(to);
    std::vector<std::vector<std::byte>> decoded;
    const int first = static_cast<int>(random() % 900);
    for (Backend* backend : {cpu_.get(), cuda_.get()}) {
      StoredLayer layer(*backend, shape, dtype, codec,
                        codec == Codec::kPlanes ? &calibration : nullptr);
      layer.Store(input.host(), 1024, 64);
      std::vector<TokenRun> runs = layer.runs();
      runs[1].first += first;
      runs[1].count -= first;
      std::vector<std::byte> k(bytes), v(bytes);
      backend->Decode(shape, dtype, codec == Codec::kPlanes ? &calibration : nullptr, runs, to,
                      MemorySpace::kHost, k.data(), v.data());
      decoded.push_back(std::move(k));
      decoded.push_back(std::move(v));
    }
    EXPECT_EQ(decoded[0], decoded[2]) << "round " << round;
    EXPECT_EQ(decoded[1], decoded[3]) << "round " << round;
  }
}

TEST_F(BackendCudaTest, PackKvSegmentsAndValuesAreThoseOfTheCpu) {
  int seen = 0;
  for (unsigned round = 0; seen < 20; ++round) {
    std::mt19937 random(250 + round);
    const LayerShape shape = RandomShape(random);
    const DType dtype = static_cast<DType>(1 + random() % 3);
    packkv::Options options;
    options.k_relative_scale = round % 3 == 0 ? 0.1f : 0.08f + 0.02f * (random() % 40);
    options.v_relative_scale = round % 3 == 0 ? 0.2f : 0.08f + 0.02f * (random() % 40);
    if (round % 2 == 0) options.repacking = packkv::Repacking::kMedian;
    if (!cuda_->Supports(shape, dtype, Codec::kPackKv, options).ok()) continue;
    ++seen;
    const int blocks = 1 + static_cast<int>(random() % 16);
    const int tokens = blocks * kBlockTokens;
    SCOPED_TRACE(testing::Message() << "round " << round << ", blocks " << blocks << ", head_dim "
                                    << shape.head_dim << ", kv_heads " << shape.kv_heads);
    const RandomTokens input(shape, dtype, tokens, 1, random);
    std::vector<std::vector<std::byte>> segments;
    std::vector<std::vector<float>> values;
    for (Backend* backend : {cpu_.get(), cuda_.get()}) {
      std::vector<const std::byte*> extents;
      for (int block = 0; block < blocks; ++block) {
        std::byte* const extent = Allocate(*backend, ExactExtentBytes(shape, dtype, kBlockTokens));
        backend->WriteTokens(shape, dtype, input.host(), block * kBlockTokens, kBlockTokens, extent,
                             kBlockTokens, 0);
        extents.push_back(extent);
      }
      EncodeJob job;
      job.source = {shape, dtype, extents};
      job.codec = Codec::kPackKv;
      job.packkv = options;
      job.segment =
          Allocate(*backend, SegmentBytes(shape, dtype, Codec::kPackKv, nullptr, tokens, options));
      backend->Encode({&job, 1});
      ASSERT_TRUE(job.in_range);
      segments.push_back(Read(*backend, job.segment, job.size_bytes));
      const TokenRun run{TokenRun::Form::kPackKv, job.segment, tokens, 7, tokens - 7};
      std::vector<float> k(static_cast<size_t>(run.count) * shape.row_values()), v(k.size());
      backend->Decode(shape, dtype, nullptr, {&run, 1}, DType::kFp32, MemorySpace::kHost,
                      reinterpret_cast<std::byte*>(k.data()),
                      reinterpret_cast<std::byte*>(v.data()));
      values.push_back(k);
      values.push_back(v);
    }
    ASSERT_EQ(segments[0].size(), segments[1].size());
    ASSERT_EQ(segments[0], segments[1]);
    for (size_t i = 0; i < values[0].size(); ++i) {
      ASSERT_EQ(values[0][i], values[2][i]) << "K, value " << i;
      ASSERT_EQ(values[1][i], values[3][i]) << "V, value " << i;
    }
  }
}

TEST_F(BackendCudaTest, AttendsAsTheCpuDoes) {
  for (unsigned round = 0; round < 20; ++round) {
    std::mt19937 random(300 + round);
    LayerShape shape = RandomShape(random);
    if (round % 3 == 0) shape.sliding_window = 700;
    const RandomTokens input(shape, DType::kBf16, 3000, 1 + static_cast<int>(round % 5), random);
    const LayerCalibration calibration = RandomCalibration(shape, random);
    std::vector<AttendOutcome> outcomes(2);
    std::vector<Backend*> backends{cpu_.get(), cuda_.get()};
    for (size_t i = 0; i < 2; ++i) {
      StoredLayer layer(*backends[i], shape, DType::kBf16, Codec::kPlanes, &calibration);
      layer.Store(input.host(), 1024, 64);
      const AttendItem item = MakeItem(shape, DType::kBf16, &calibration, layer.runs(), 0,
                                       3000 - 1 - round % 5, input.q_bytes, outcomes[i]);
      ASSERT_TRUE(backends[i]->Attend({&item, 1}).ok());
    }
    ReferenceOutput expected;
    expected.output.assign(outcomes[0].output.begin(), outcomes[0].output.end());
    EXPECT_LE(WorstRelativeError(expected, outcomes[1].output, shape.head_dim), 5e-4)
        << "round " << round;
  }
}

TEST_F(BackendCudaTest, TheBudgetBoundsSlabs) {
  cuda_->SetBudget(8 * kSlabGranularityBytes);
  std::vector<std::unique_ptr<Extent>> held;
  absl::Status status;
  while (held.size() < 100) {
    auto extent = cuda_->Allocate("a", ExtentUse::kSealed, kSlabGranularityBytes / 2);
    status = extent.status();
    if (!extent.ok()) break;
    held.push_back(*std::move(extent));
  }
  EXPECT_EQ(held.size(), 16u);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cuda_->slab_usage().slab_bytes, 8 * kSlabGranularityBytes);
  EXPECT_FALSE(cuda_->Allocate("b", ExtentUse::kSealed, 1).ok());
  held.clear();
  EXPECT_TRUE(cuda_->Allocate("b", ExtentUse::kSealed, 1).ok());
  EXPECT_GT(cuda_->memory_bytes(), uint64_t{1} << 30);
}

TEST_F(BackendCudaTest, ASlabHoldsNothingOfItsFormerTenant) {
  const std::vector<std::byte> secret(kSlabGranularityBytes, std::byte{0xA5});
  cuda_->SetBudget(8 * kSlabGranularityBytes);
  {
    auto extent = cuda_->Allocate("a", ExtentUse::kTail, secret.size());
    ASSERT_TRUE(extent.ok());
    cuda_->WriteBytes(secret.data(), secret.size(), (*extent)->data());
  }
  cuda_->SetBudget(1);
  cuda_->SetBudget(8 * kSlabGranularityBytes);
  auto extent = cuda_->Allocate("b", ExtentUse::kTail, secret.size());
  ASSERT_TRUE(extent.ok());
  const std::vector<std::byte> read = Read(*cuda_, (*extent)->data(), secret.size());
  EXPECT_EQ(std::count(read.begin(), read.end(), std::byte{0}),
            static_cast<std::ptrdiff_t>(read.size()));
}

}  // namespace
}  // namespace kvdepot
