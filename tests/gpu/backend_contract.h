// What every backend must do, as one suite. A backend's test instantiates it with its factory,
// which returns null where this machine has no such device, and with the errors that it states:
//
//   INSTANTIATE_TEST_SUITE_P(Cpu, BackendContractTest, ::testing::Values(BackendUnderTest{
//       +[] { return MakeCpuBackend(2); }, 3e-4, 1e-3}));
#ifndef KVDEPOT_TESTS_GPU_BACKEND_CONTRACT_H_
#define KVDEPOT_TESTS_GPU_BACKEND_CONTRACT_H_

#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "gpu/check.h"
#include "gtest/gtest.h"
#include "tests/gpu/attend_reference.h"
#include "tests/gpu/random_layer.h"
#include "tests/gpu/stored_layer.h"

namespace kvdepot {

struct BackendUnderTest {
  std::unique_ptr<Backend> (*make)();
  // Of Attend against double precision over the decoded values, relative, worst row: in general,
  // and where one token dominates.
  double error_max;
  double spike_error_max;
};
inline void PrintTo(const BackendUnderTest& backend, std::ostream* out) {
  *out << "error at most " << backend.error_max;
}

class BackendContractTest : public ::testing::TestWithParam<BackendUnderTest> {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << "no device";
  }

  std::unique_ptr<Backend> backend_ = GetParam().make();
};

TEST_P(BackendContractTest, AttendEqualsDoublePrecisionOverDecodedValues) {
  constexpr unsigned kSeed = 20261124;
  for (unsigned round = 0; round < 60; ++round) {
    std::mt19937 random(kSeed + round);
    LayerShape shape = RandomShape(random);
    const DType dtype = static_cast<DType>(1 + random() % 3);
    const Codec codec = round % 5 == 0 ? Codec::kRaw : Codec::kPlanes;
    const int tokens =
        round < 8 ? 1 + static_cast<int>(round * 11) : 1 + static_cast<int>(random() % 5000);
    const int queries = std::min(tokens, 1 + static_cast<int>(round % 3 == 0 ? random() % 40 : 0));
    if (random() % 4 == 0) shape.sliding_window = 1 + static_cast<int>(random() % 2000);
    SCOPED_TRACE(testing::Message()
                 << "seed " << kSeed + round << ", tokens " << tokens << ", queries " << queries
                 << ", head_dim " << shape.head_dim << ", kv_heads " << shape.kv_heads
                 << ", query_heads " << shape.query_heads << ", window " << shape.sliding_window
                 << ", cap " << shape.soft_cap);
    const RandomTokens input(shape, dtype, tokens, queries, random);
    const LayerCalibration calibration = RandomCalibration(shape, random);
    StoredLayer layer(*backend_, shape, dtype, codec,
                      codec == Codec::kPlanes ? &calibration : nullptr);
    layer.Store(input.host(), random() % 2 == 0 ? 1024 : 256, 64);
    ASSERT_EQ(layer.raw_fallbacks(), 0);

    std::vector<float> k, v;
    layer.Values(k, v);
    const uint64_t query_position = static_cast<uint64_t>(tokens - queries);
    AttendOutcome outcome;
    const AttendItem item = MakeItem(shape, dtype, &calibration, layer.runs(), 0, query_position,
                                     input.q_bytes, outcome);
    ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
    const ReferenceOutput expected =
        ReferenceAttention(shape, k, v, 0, input.q_values, query_position, item.scale);
    EXPECT_LE(WorstRelativeError(expected, outcome.output, shape.head_dim), GetParam().error_max);
    for (size_t i = 0; i < expected.log_sum_exp.size(); ++i) {
      ASSERT_NEAR(outcome.log_sum_exp[i], expected.log_sum_exp[i], 2e-3) << i;
    }
  }
}

// One token's logit stands 6 to 14 above the rest.
TEST_P(BackendContractTest, AttendKeepsItsErrorWhenOneTokenDominates) {
  for (unsigned round = 0; round < 24; ++round) {
    std::mt19937 random(777 + round);
    LayerShape shape{1, 4, 64 << (round % 3), 0, 0};
    const int tokens = 600 + static_cast<int>(random() % 3000);
    RandomTokens input(shape, DType::kFp32, tokens, 1, random);
    const float spike = 6 + static_cast<float>(round % 9);
    // The key of one token becomes the mean query, scaled to the wanted logit.
    const size_t dim = static_cast<size_t>(shape.head_dim);
    const size_t token = random() % static_cast<unsigned>(tokens);
    std::vector<float> k = ToFloats(input.k_bytes, DType::kFp32);
    double norm = 0;
    for (size_t c = 0; c < dim; ++c)
      norm += static_cast<double>(input.q_values[c] * input.q_values[c]);
    for (size_t h = 0; h < 4; ++h) {
      for (size_t c = 0; c < dim; ++c) input.q_values[h * dim + c] = input.q_values[c];
    }
    input.q_bytes = ToBytes(input.q_values, DType::kFp32);
    for (size_t t = 0; t < static_cast<size_t>(tokens); ++t) {
      for (size_t c = 0; c < dim; ++c) k[t * dim + c] *= 0.3f;
    }
    const float gain = spike * std::sqrt(static_cast<float>(dim)) / static_cast<float>(norm);
    for (size_t c = 0; c < dim; ++c) k[token * dim + c] += gain * input.q_values[c];
    input.k_bytes = ToBytes(k, DType::kFp32);

    const LayerCalibration calibration = RandomCalibration(shape, random);
    StoredLayer layer(*backend_, shape, DType::kFp32, Codec::kPlanes, &calibration);
    layer.Store(input.host(), 1024, 64);
    std::vector<float> stored_k, stored_v;
    layer.Values(stored_k, stored_v);
    AttendOutcome outcome;
    const uint64_t query_position = static_cast<uint64_t>(tokens) - 1;
    const AttendItem item = MakeItem(shape, DType::kFp32, &calibration, layer.runs(), 0,
                                     query_position, input.q_bytes, outcome);
    ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
    const ReferenceOutput expected = ReferenceAttention(shape, stored_k, stored_v, 0,
                                                        input.q_values, query_position, item.scale);
    EXPECT_LE(WorstRelativeError(expected, outcome.output, shape.head_dim),
              GetParam().spike_error_max)
        << "round " << round;
  }
}

TEST_P(BackendContractTest, PartlyUsedRunsAreMaskedAtBothEnds) {
  std::mt19937 random(5);
  const LayerShape shape{2, 6, 128, 0, 0};
  const RandomTokens input(shape, DType::kBf16, 16 + 1024 + 100, 3, random);
  const LayerCalibration calibration = RandomCalibration(shape, random);
  for (const Codec codec : {Codec::kPlanes, Codec::kRaw}) {
    StoredLayer layer(*backend_, shape, DType::kBf16, codec, &calibration);
    layer.Store(input.host(), 1024, 64);
    std::vector<float> k, v;
    layer.Values(k, v);
    for (const auto& [first, count] :
         {std::pair{0, 1}, {63, 2}, {64, 64}, {100, 700}, {1000, 24}}) {
      TokenRun run = layer.runs()[1];
      run.first = first;
      run.count = count;
      const std::vector<TokenRun> runs{run};
      const uint64_t first_position = 16 + static_cast<uint64_t>(first);
      const uint64_t query_position = first_position + static_cast<uint64_t>(count) - 1;
      AttendOutcome outcome;
      const AttendItem item = MakeItem(shape, DType::kBf16, &calibration, runs, first_position,
                                       query_position, input.q_bytes, outcome);
      ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
      const auto cut = [&, f = first, n = count](const std::vector<float>& values) {
        const auto begin = values.begin() + static_cast<long>(first_position * shape.row_values());
        (void)f;
        return std::vector<float>(
            begin, begin + static_cast<long>(static_cast<size_t>(n) * shape.row_values()));
      };
      const ReferenceOutput expected = ReferenceAttention(
          shape, cut(k), cut(v), first_position, input.q_values, query_position, item.scale);
      EXPECT_LE(WorstRelativeError(expected, outcome.output, shape.head_dim), GetParam().error_max)
          << "first " << first << ", count " << count;
    }
  }
}

TEST_P(BackendContractTest, QueriesThatSeeNothingGetZeroAndMinusInfinity) {
  std::mt19937 random(6);
  LayerShape shape{1, 2, 64, 0, 8};
  const RandomTokens input(shape, DType::kFp16, 40, 2, random);
  StoredLayer layer(*backend_, shape, DType::kFp16, Codec::kRaw, nullptr);
  layer.Store(input.host(), 1024, 64);
  AttendOutcome outcome;
  // The window of both queries lies behind the last stored token.
  const AttendItem item =
      MakeItem(shape, DType::kFp16, nullptr, layer.runs(), 0, 1000, input.q_bytes, outcome);
  ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
  for (const float value : outcome.output) EXPECT_EQ(value, 0);
  for (const float value : outcome.log_sum_exp) EXPECT_EQ(value, -INFINITY);
}

// Sessions of one shape and very different lengths.
class RaggedBatch {
 public:
  explicit RaggedBatch(Backend& backend) {
    std::mt19937 random(7);
    calibrations_.reserve(lengths_.size());
    for (const int length : lengths_) {
      inputs_.emplace_back(shape_, DType::kBf16, length, 1, random);
      calibrations_.push_back(RandomCalibration(shape_, random));
      layers_.push_back(std::make_unique<StoredLayer>(backend, shape_, DType::kBf16, Codec::kPlanes,
                                                      &calibrations_.back()));
      layers_.back()->Store(inputs_.back().host(), 1024, 64);
    }
  }
  size_t size() const { return lengths_.size(); }
  AttendItem Item(size_t i, AttendOutcome& outcome) const {
    return MakeItem(shape_, DType::kBf16, &calibrations_[i], layers_[i]->runs(), 0,
                    static_cast<uint64_t>(lengths_[i]) - 1, inputs_[i].q_bytes, outcome);
  }
  std::vector<AttendOutcome> Attend(Backend& backend) const {
    std::vector<AttendOutcome> outcomes(size());
    std::vector<AttendItem> items;
    for (size_t i = 0; i < size(); ++i) items.push_back(Item(i, outcomes[i]));
    EXPECT_TRUE(backend.Attend(items).ok());
    return outcomes;
  }
  ReferenceOutput Reference(size_t i) const {
    std::vector<float> k, v;
    layers_[i]->Values(k, v);
    return ReferenceAttention(shape_, k, v, 0, inputs_[i].q_values,
                              static_cast<uint64_t>(lengths_[i]) - 1,
                              1 / std::sqrt(static_cast<float>(shape_.head_dim)));
  }
  int head_dim() const { return shape_.head_dim; }

 private:
  const LayerShape shape_{2, 12, 128, 0, 0};
  const std::vector<int> lengths_{1, 17, 300, 5000, 64, 9000};
  std::vector<RandomTokens> inputs_;
  std::vector<LayerCalibration> calibrations_;
  std::vector<std::unique_ptr<StoredLayer>> layers_;
};

TEST_P(BackendContractTest, SessionsOfARaggedBatchKeepTheErrorBound) {
  const RaggedBatch batch(*backend_);
  const std::vector<AttendOutcome> outcomes = batch.Attend(*backend_);
  for (size_t i = 0; i < batch.size(); ++i) {
    EXPECT_LE(WorstRelativeError(batch.Reference(i), outcomes[i].output, batch.head_dim()),
              GetParam().error_max)
        << i;
  }
}

TEST_P(BackendContractTest, ABatchRepeatsItsBits) {
  const RaggedBatch batch(*backend_);
  const std::vector<AttendOutcome> first = batch.Attend(*backend_);
  for (int round = 0; round < 20; ++round) {
    const std::vector<AttendOutcome> again = batch.Attend(*backend_);
    for (size_t i = 0; i < batch.size(); ++i) {
      ASSERT_EQ(again[i].output, first[i].output) << i;
      ASSERT_EQ(again[i].log_sum_exp, first[i].log_sum_exp) << i;
    }
  }
}

TEST_P(BackendContractTest, ExactTokensComeBackBitForBit) {
  std::mt19937 random(8);
  const LayerShape shape{3, 3, 64, 0, 0};
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    const RandomTokens input(shape, dtype, 500, 1, random);
    StoredLayer layer(*backend_, shape, dtype, Codec::kRaw, nullptr);
    layer.Store(input.host(), 256, 64);
    std::vector<std::byte> k(input.k_bytes.size()), v(input.v_bytes.size());
    backend_->Decode(shape, dtype, nullptr, layer.runs(), dtype, MemorySpace::kHost, k.data(),
                     v.data());
    EXPECT_EQ(k, input.k_bytes);
    EXPECT_EQ(v, input.v_bytes);
  }
}

// Jobs of several shapes, dtypes and codecs, one with values out of the range of `planes`.
TEST_P(BackendContractTest, ManySegmentsAtOnceAreTheBytesOfEachAlone) {
  constexpr int kCount = 60;
  constexpr int kOutOfRange = 30;
  std::mt19937 random(11);
  std::vector<std::unique_ptr<Extent>> extents;
  const auto allocate = [&](size_t bytes) {
    auto extent = backend_->Allocate("tenant", ExtentUse::kSealed, bytes);
    EXPECT_TRUE(extent.ok());
    extents.push_back(*std::move(extent));
    return extents.back()->data();
  };
  // Neighbours are often alike, as layers of a model are.
  LayerShape shape;
  std::vector<std::unique_ptr<LayerCalibration>> calibrations;
  std::vector<std::vector<const std::byte*>> blocks;
  std::vector<EncodeJob> jobs;
  for (int i = 0; i < kCount; ++i) {
    if (i % 5 == 0) {
      shape = RandomShape(random);
      calibrations.push_back(std::make_unique<LayerCalibration>(RandomCalibration(shape, random)));
      calibrations.back()->hash_prefix[0] = static_cast<uint8_t>(i);
    }
    EncodeJob job;
    job.source.shape = shape;
    job.source.dtype = i % 15 < 10 ? DType::kBf16 : DType::kFp32;
    job.codec = i % 7 == 3 ? Codec::kRaw : Codec::kPlanes;
    job.calibration = job.codec == Codec::kPlanes ? calibrations.back().get() : nullptr;
    const int tokens = kBlockTokens * (1 + static_cast<int>(random() % 4));
    RandomTokens input(shape, job.source.dtype, tokens, 1, random);
    if (i == kOutOfRange) {
      input.k_bytes = ToBytes(std::vector<float>(input.k_bytes.size() / 2, 1e30f), DType::kBf16);
    }
    std::vector<const std::byte*>& of_job = blocks.emplace_back();
    for (int token = 0; token < tokens; token += kBlockTokens) {
      std::byte* const block = allocate(ExactExtentBytes(shape, job.source.dtype, kBlockTokens));
      backend_->WriteTokens(shape, job.source.dtype, input.host(), token, kBlockTokens, block,
                            kBlockTokens, 0);
      of_job.push_back(block);
    }
    job.segment =
        allocate(SegmentBytes(shape, job.source.dtype, job.codec, job.calibration, tokens));
    jobs.push_back(job);
  }
  for (size_t i = 0; i < jobs.size(); ++i) jobs[i].source.blocks = blocks[i];
  const auto read = [&](const EncodeJob& job) {
    const int tokens = static_cast<int>(job.source.blocks.size()) * kBlockTokens;
    std::vector<std::byte> bytes(
        SegmentBytes(job.source.shape, job.source.dtype, job.codec, job.calibration, tokens));
    backend_->ReadBytes(job.segment, bytes.size(), bytes.data());
    return bytes;
  };

  std::vector<std::vector<std::byte>> alone;
  for (EncodeJob& job : jobs) {
    backend_->Encode({&job, 1});
    alone.push_back(read(job));
    const std::vector<std::byte> zeros(alone.back().size());
    backend_->WriteBytes(zeros.data(), zeros.size(), job.segment);
    job.in_range = true;
  }
  backend_->Encode(absl::MakeSpan(jobs));
  for (int i = 0; i < kCount; ++i) {
    const size_t index = static_cast<size_t>(i);
    ASSERT_EQ(jobs[index].in_range, i != kOutOfRange) << i;
    if (jobs[index].in_range) {
      EXPECT_EQ(read(jobs[index]), alone[index]) << i;
    }
  }
}

TEST_P(BackendContractTest, TheFirstNonFiniteValueIsFoundInEitherMemory) {
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    std::vector<float> values(5000, 1.5f);
    const auto first = [&](MemorySpace space) {
      const std::vector<std::byte> bytes = ToBytes(values, dtype);
      const DeviceBytes device(*backend_, bytes);
      return backend_->FirstNonFinite(space == MemorySpace::kHost ? bytes.data() : device.data(),
                                      space, dtype, values.size());
    };
    for (const MemorySpace space : {MemorySpace::kHost, MemorySpace::kDevice}) {
      values.assign(5000, 1.5f);
      EXPECT_EQ(first(space), 5000u);
      for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
        values.assign(5000, 1.5f);
        values[4321] = bad;
        values[4999] = bad;
        EXPECT_EQ(first(space), 4321u) << bad;
      }
    }
  }
}

// What a client shows: tokens, queries, outputs and values in memory of the device, used as it is.
TEST_P(BackendContractTest, MemoryOfTheDeviceGivesWhatHostMemoryGives) {
  std::mt19937 random(12);
  const LayerShape shape{2, 6, 128, 0, 0};
  for (const DType dtype : {DType::kBf16, DType::kFp32}) {
    const RandomTokens input(shape, dtype, 1500, 3, random);
    const LayerCalibration calibration = RandomCalibration(shape, random);
    const DeviceBytes k(*backend_, input.k_bytes);
    const DeviceBytes v(*backend_, input.v_bytes);
    const DeviceBytes q(*backend_, input.q_bytes);
    StoredLayer from_host(*backend_, shape, dtype, Codec::kPlanes, &calibration);
    from_host.Store(input.host(), 1024, 64);
    StoredLayer layer(*backend_, shape, dtype, Codec::kPlanes, &calibration);
    layer.Store({k.data(), v.data(), 1500, MemorySpace::kDevice}, 1024, 64);

    AttendOutcome expected, mixed;
    const AttendItem host_item =
        MakeItem(shape, dtype, &calibration, from_host.runs(), 0, 1497, input.q_bytes, expected);
    AttendItem item =
        MakeItem(shape, dtype, &calibration, layer.runs(), 0, 1497, input.q_bytes, mixed);
    const DeviceBytes output(*backend_, std::vector<std::byte>(mixed.output.size() * 4));
    const DeviceBytes log_sum_exp(*backend_, std::vector<std::byte>(mixed.log_sum_exp.size() * 4));
    AttendItem device_item = item;
    item.q = device_item.q = q.data();
    item.q_space = device_item.q_space = MemorySpace::kDevice;
    device_item.output = reinterpret_cast<float*>(output.data());
    device_item.log_sum_exp = reinterpret_cast<float*>(log_sum_exp.data());
    device_item.results_space = MemorySpace::kDevice;
    ASSERT_TRUE(backend_->Attend({&host_item, 1}).ok());
    ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
    EXPECT_EQ(mixed.output, expected.output);
    EXPECT_EQ(mixed.log_sum_exp, expected.log_sum_exp);
    // Beside one that goes to the host, in one batch, which repeats itself alone.
    for (const int first : {0, 1}) {
      const AttendItem both[] = {first == 0 ? item : device_item, first == 0 ? device_item : item};
      ASSERT_TRUE(backend_->Attend(both).ok());
      EXPECT_EQ(output.Read(), ToBytes(mixed.output, DType::kFp32));
      EXPECT_EQ(log_sum_exp.Read(), ToBytes(mixed.log_sum_exp, DType::kFp32));
    }

    std::vector<std::byte> host_k(input.k_bytes.size() / DTypeBytes(dtype) * 2);
    std::vector<std::byte> host_v(host_k.size());
    const DeviceBytes device_k(*backend_, host_k);
    const DeviceBytes device_v(*backend_, host_k);
    backend_->Decode(shape, dtype, &calibration, layer.runs(), DType::kBf16, MemorySpace::kHost,
                     host_k.data(), host_v.data());
    backend_->Decode(shape, dtype, &calibration, layer.runs(), DType::kBf16, MemorySpace::kDevice,
                     device_k.data(), device_v.data());
    EXPECT_EQ(device_k.Read(), host_k);
    EXPECT_EQ(device_v.Read(), host_v);
  }
}

TEST_P(BackendContractTest, CalibrationsOfManyLayersAreThoseOfEachAlone) {
  std::mt19937 random(11);
  std::vector<std::vector<const std::byte*>> blocks;
  std::vector<std::unique_ptr<Extent>> extents;
  std::vector<CalibrationJob> jobs;
  const LayerShape shapes[] = {
      {2, 2, 64, 0, 0}, {2, 4, 64, 0, 0}, {3, 3, 128, 0, 0}, {2, 2, 64, 0, 0}};
  for (int i = 0; i < 4; ++i) {
    const LayerShape& shape = shapes[i];
    const int count = 1 + 3 * i;
    const RandomTokens input(shape, DType::kBf16, count * kBlockTokens, 1, random);
    blocks.emplace_back();
    for (int block = 0; block < count; ++block) {
      auto extent = backend_->Allocate("tenant", ExtentUse::kTail,
                                       ExactExtentBytes(shape, DType::kBf16, kBlockTokens));
      ASSERT_TRUE(extent.ok());
      backend_->WriteTokens(shape, DType::kBf16, input.host(), block * kBlockTokens, kBlockTokens,
                            (*extent)->data(), kBlockTokens, 0);
      blocks.back().push_back((*extent)->data());
      extents.push_back(*std::move(extent));
    }
  }
  for (size_t i = 0; i < 4; ++i) {
    jobs.push_back({{shapes[i], DType::kBf16, blocks[i]}, static_cast<Profile>(i), {}});
  }
  const std::vector<LayerCalibration> together = backend_->DeriveCalibrations(jobs);
  ASSERT_EQ(together.size(), jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    EXPECT_EQ(together[i].hash_prefix, backend_->DeriveCalibrations({&jobs[i], 1})[0].hash_prefix)
        << i;
  }
  EXPECT_NE(together[0].hash_prefix, together[3].hash_prefix);
}

TEST_P(BackendContractTest, TheFirstRunWithANonFiniteValueIsFound) {
  std::mt19937 random(10);
  const LayerShape shape{3, 3, 64, 0, 0};
  for (const DType dtype : {DType::kBf16, DType::kFp16, DType::kFp32}) {
    const size_t row_bytes = 64 * DTypeBytes(dtype);
    const size_t bytes = ExactExtentBytes(shape, dtype, kBlockTokens);
    const std::vector<std::byte> good =
        ToBytes(std::vector<float>(bytes / DTypeBytes(dtype), 1.5f), dtype);
    std::vector<std::unique_ptr<Extent>> extents;
    std::vector<WrittenRun> runs;
    // The last run ends inside its extent.
    for (const int count : {64, 7, 1, 30}) {
      auto extent = backend_->Allocate("tenant", ExtentUse::kTail, bytes);
      ASSERT_TRUE(extent.ok());
      backend_->WriteBytes(good.data(), bytes, (*extent)->data());
      const int first = count == 64 ? 0 : 20;
      runs.push_back(
          {shape, {TokenRun::Form::kExact, (*extent)->data(), kBlockTokens, first, count}});
      extents.push_back(*std::move(extent));
    }
    EXPECT_EQ(backend_->FirstNonFiniteRun(dtype, runs), runs.size());
    const auto write = [&](size_t run, size_t tensor, int slot, size_t channel, float value) {
      const std::vector<std::byte> one = ToBytes({value}, dtype);
      backend_->WriteBytes(one.data(), one.size(),
                           extents[run]->data() +
                               (tensor * 64 + static_cast<size_t>(slot)) * row_bytes +
                               channel * DTypeBytes(dtype));
    };
    // Beside the runs: nobody looks.
    write(1, 5, 19, 63, NAN);
    write(1, 0, 27, 0, NAN);
    write(3, 5, 50, 0, INFINITY);
    EXPECT_EQ(backend_->FirstNonFiniteRun(dtype, runs), runs.size());
    write(3, 5, 49, 63, -INFINITY);
    EXPECT_EQ(backend_->FirstNonFiniteRun(dtype, runs), 3u);
    write(1, 4, 26, 1, NAN);
    EXPECT_EQ(backend_->FirstNonFiniteRun(dtype, runs), 1u);
    EXPECT_EQ(backend_->FirstNonFiniteRun(dtype, {}), 0u);
  }
}

TEST_P(BackendContractTest, DamagedSegmentsAreFound) {
  std::mt19937 random(9);
  const LayerShape shape{2, 2, 64, 0, 0};
  const RandomTokens input(shape, DType::kBf16, 16 + 128 + 64, 1, random);
  const LayerCalibration calibration = RandomCalibration(shape, random);
  StoredLayer layer(*backend_, shape, DType::kBf16, Codec::kPlanes, &calibration);
  layer.Store(input.host(), 1024, 64);
  // Of the store's own making, so that the suite may write to it.
  std::byte* const segment = const_cast<std::byte*>(layer.runs()[1].data);
  const size_t size_bytes =
      SegmentBytes(shape, DType::kBf16, Codec::kPlanes, &calibration, layer.runs()[1].capacity);
  const SegmentGeometry geometry{Codec::kPlanes, DType::kBf16, 2, 64, layer.runs()[1].capacity};
  const auto verify = [&](const SegmentGeometry& of) {
    return backend_->VerifySegment(segment, size_bytes, of);
  };
  EXPECT_EQ(verify(geometry), absl::OkStatus());
  const auto flip = [&](size_t offset) {
    std::byte byte;
    backend_->ReadBytes(segment + offset, 1, &byte);
    byte ^= std::byte{4};
    backend_->WriteBytes(&byte, 1, segment + offset);
  };
  for (const size_t offset :
       {size_t{1}, size_t{17}, size_t{30}, size_t{70}, size_t{500}, size_bytes - 1}) {
    flip(offset);
    EXPECT_TRUE(absl::IsDataLoss(verify(geometry))) << offset;
    flip(offset);
  }
  EXPECT_EQ(verify(geometry), absl::OkStatus());
  // Whole, but not what its reader is going to take it for.
  const auto refusal = [&](const SegmentGeometry& of) { return std::string(verify(of).message()); };
  SegmentGeometry other = geometry;
  other.codec = Codec::kPackKv;
  EXPECT_EQ(refusal(other), "segment codec is 2, expected 3");
  other = geometry;
  other.dtype = DType::kFp16;
  EXPECT_EQ(refusal(other), "segment dtype is 1, expected 2");
  other = geometry;
  other.kv_heads = 4;
  EXPECT_EQ(refusal(other), "segment kv_heads is 2, expected 4");
  other = geometry;
  other.head_dim = 128;
  EXPECT_EQ(refusal(other), "segment head_dim is 64, expected 128");
  other = geometry;
  other.tokens += kBlockTokens;
  EXPECT_EQ(refusal(other),
            absl::StrCat("segment tokens is ", geometry.tokens, ", expected ", other.tokens));
}

TEST_P(BackendContractTest, BytesComeBackAsTheyWereWritten) {
  std::vector<std::byte> written(100'000);
  for (size_t i = 0; i < written.size(); ++i) written[i] = static_cast<std::byte>(i * 7 % 251);
  auto extent = backend_->Allocate("tenant", ExtentUse::kTail, written.size());
  ASSERT_TRUE(extent.ok());
  backend_->WriteBytes(written.data(), written.size(), (*extent)->data());
  std::vector<std::byte> read(written.size());
  backend_->ReadBytes((*extent)->data(), read.size(), read.data());
  EXPECT_EQ(read, written);
  backend_->ReadBytes((*extent)->data() + 99, 3, read.data());
  EXPECT_EQ(read[2], written[101]);
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_BACKEND_CONTRACT_H_
