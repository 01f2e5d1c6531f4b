// The part of the backends' suite (backend_contract.h) that is about `packkv`: on every backend
// that supports it.
#ifndef KVDEPOT_TESTS_GPU_PACKKV_CONTRACT_H_
#define KVDEPOT_TESTS_GPU_PACKKV_CONTRACT_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/numeric.h"
#include "gpu/packkv/format.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/backend_contract.h"

namespace kvdepot {

class PackKvContractTest : public BackendContractTest {
 protected:
  struct Case {
    LayerShape shape;
    DType dtype = DType::kBf16;
    packkv::Options options;
  };

  void SetUp() override {
    BackendContractTest::SetUp();
    if (IsSkipped()) return;
    const absl::Status supported =
        backend_->Supports({2, 4, 128, 0, 0}, DType::kBf16, Codec::kPackKv, {});
    if (supported.ok()) return;
    EXPECT_TRUE(absl::IsUnimplemented(supported)) << supported;
    EXPECT_NE(supported.message().find("packkv"), absl::string_view::npos) << supported;
    EXPECT_NE(supported.message().find(backend_->device()), absl::string_view::npos) << supported;
    GTEST_SKIP() << supported;
  }

  // Of whatever this backend supports.
  Case RandomCase(std::mt19937& random) const {
    Case chosen;
    do {
      chosen.shape = RandomShape(random);
      chosen.dtype = static_cast<DType>(1 + random() % 3);
      chosen.options.normalize = random() % 3 == 0;
      const float most = chosen.options.normalize ? 2 : 1;
      const unsigned steps = chosen.options.normalize ? 28 : 50;
      for (float* scale : {&chosen.options.k_relative_scale, &chosen.options.v_relative_scale}) {
        *scale = most * std::exp(-0.1f * static_cast<float>(random() % steps));
      }
      chosen.options.pack_tokens = 4 << random() % 3;
      chosen.options.repacking = static_cast<packkv::Repacking>(1 + random() % 3);
    } while (!backend_->Supports(chosen.shape, chosen.dtype, Codec::kPackKv, chosen.options).ok());
    return chosen;
  }
  static SegmentGeometry GeometryOf(const Case& of, int tokens) {
    return {Codec::kPackKv, of.dtype, of.shape.kv_heads, of.shape.head_dim, tokens};
  }
  StoredLayer MakeLayer(const Case& of) const {
    return StoredLayer(*backend_, of.shape, of.dtype, Codec::kPackKv, nullptr, of.options);
  }
  // Run `index` of the layer's, less `skipped` tokens at its beginning, of `count`.
  std::vector<float> DecodeK(const Case& of, TokenRun run, int skipped, int count) const {
    run.first += skipped;
    run.count = count;
    std::vector<float> k(static_cast<size_t>(count) * of.shape.row_values()), v(k.size());
    backend_->Decode(of.shape, of.dtype, nullptr, {&run, 1}, DType::kFp32, MemorySpace::kHost,
                     reinterpret_cast<std::byte*>(k.data()),
                     reinterpret_cast<std::byte*>(v.data()));
    k.insert(k.end(), v.begin(), v.end());
    return k;
  }
};

// What gpu/FORMAT.md says a token decodes to: every value its nearest multiple of the token's step.
inline void ExpectNearestSteps(const std::vector<float>& exact, const std::vector<float>& decoded,
                               size_t row_values, float relative_scale) {
  for (size_t at = 0; at < exact.size(); at += row_values) {
    const auto [least, most] =
        std::minmax_element(exact.begin() + static_cast<ptrdiff_t>(at),
                            exact.begin() + static_cast<ptrdiff_t>(at + row_values));
    const float magnitude = std::max(std::fabs(*least), std::fabs(*most));
    const float step = Bf16ToFloat(
        FloatToBf16(std::max({(*most - *least) * relative_scale, magnitude * (1.0f / 32000)})));
    for (size_t i = at; i < at + row_values; ++i) {
      ASSERT_EQ(decoded[i], std::nearbyint(exact[i] / step) * step)
          << "token " << at / row_values << ", value " << i % row_values;
    }
  }
}

TEST_P(PackKvContractTest, ATokenDecodesToMultiplesOfItsStepInTokenOrder) {
  for (unsigned round = 0; round < 24; ++round) {
    std::mt19937 random(2000 + round);
    Case of = RandomCase(random);
    if (of.options.normalize) continue;
    SCOPED_TRACE(testing::Message() << "seed " << 2000 + round);
    const int tokens = kSinkTokens + kBlockTokens * (1 + static_cast<int>(random() % 6));
    const RandomTokens input(of.shape, of.dtype, tokens, 1, random);
    StoredLayer layer = MakeLayer(of);
    layer.Store(input.host(), 256, 0);
    ASSERT_EQ(layer.raw_fallbacks(), 0);
    std::vector<float> k, v;
    layer.Values(k, v);
    const size_t row = of.shape.row_values();
    const auto sealed = [&](const std::vector<float>& values) {
      return std::vector<float>(values.begin() + static_cast<ptrdiff_t>(kSinkTokens * row),
                                values.end());
    };
    ExpectNearestSteps(sealed(ToFloats(input.k_bytes, of.dtype)), sealed(k), row,
                       of.options.k_relative_scale);
    ExpectNearestSteps(sealed(ToFloats(input.v_bytes, of.dtype)), sealed(v), row,
                       of.options.v_relative_scale);
  }
}

// In double precision, and so with some room: a value is half a step away at most, steps being of
// a token and head, in channels by their own scale.
TEST_P(PackKvContractTest, NormalisedValuesAreWithinHalfAStepOfTheirChannel) {
  for (unsigned round = 0; round < 8; ++round) {
    std::mt19937 random(2500 + round);
    Case of;
    of.shape = RandomShape(random);
    of.dtype = static_cast<DType>(1 + random() % 3);
    of.options = packkv::DefaultOptions(true);
    of.options.repacking = static_cast<packkv::Repacking>(1 + random() % 3);
    if (!backend_->Supports(of.shape, of.dtype, Codec::kPackKv, of.options).ok()) continue;
    const size_t tokens = static_cast<size_t>(kBlockTokens) * (1 + random() % 5);
    const size_t width = of.shape.row_values();
    const size_t dim = static_cast<size_t>(of.shape.head_dim);
    const RandomTokens input(of.shape, of.dtype, kSinkTokens + static_cast<int>(tokens), 1, random);
    LayerCalibration calibration = RandomCalibration(of.shape, random);
    for (size_t c = 0; c < width; ++c) {
      calibration.k_channel_weights.push_back(static_cast<float>(1 + random() % 9));
    }
    StoredLayer layer(*backend_, of.shape, of.dtype, Codec::kPackKv, &calibration, of.options);
    layer.Store(input.host(), 1024, 0);
    ASSERT_EQ(layer.raw_fallbacks(), 0);
    std::vector<float> k, v;
    layer.Values(k, v);
    for (const bool is_key : {true, false}) {
      const std::vector<float> exact = ToFloats(is_key ? input.k_bytes : input.v_bytes, of.dtype);
      const std::vector<float>& decoded = is_key ? k : v;
      const auto at = [&](const std::vector<float>& of_values, size_t token, size_t c) {
        return static_cast<double>(of_values[(kSinkTokens + token) * width + c]);
      };
      std::vector<double> centre(width), scale(width);
      for (size_t c = 0; c < width; ++c) {
        for (size_t t = 0; t < tokens; ++t) centre[c] += at(exact, t, c) / double(tokens);
        for (size_t t = 0; t < tokens; ++t) {
          scale[c] += std::pow(at(exact, t, c) - centre[c], 2) / double(tokens);
        }
        scale[c] = std::sqrt(scale[c]);
        if (is_key) {
          const double weight = static_cast<double>(calibration.k_channel_weights[c]);
          scale[c] = std::sqrt(scale[c] / std::sqrt(weight));
        }
      }
      for (size_t t = 0; t < tokens; ++t) {
        for (size_t head = 0; head < width; head += dim) {
          double squares = 0;
          for (size_t c = head; c < head + dim; ++c) {
            squares += std::pow((at(exact, t, c) - centre[c]) / scale[c], 2);
          }
          const double half_step = 0.5 * 0.8 * std::sqrt(squares / double(dim)) * 1.03;
          for (size_t c = head; c < head + dim; ++c) {
            ASSERT_NEAR(at(decoded, t, c), at(exact, t, c),
                        half_step * scale[c] + 1e-3 * std::fabs(centre[c]))
                << "round " << round << ", token " << t << ", channel " << c << ", K " << is_key;
          }
        }
      }
    }
  }
}

TEST_P(PackKvContractTest, AttendEqualsDoublePrecisionOverDecodedValues) {
  for (unsigned round = 0; round < 30; ++round) {
    std::mt19937 random(3000 + round);
    Case of = RandomCase(random);
    if (round % 4 == 0) of.shape.sliding_window = 1 + static_cast<int>(random() % 1500);
    const int tokens =
        round < 6 ? 70 + static_cast<int>(round * 11) : 100 + static_cast<int>(random() % 3000);
    const int queries = round % 3 == 0 ? 1 + static_cast<int>(random() % 40) : 1;
    SCOPED_TRACE(testing::Message() << "seed " << 3000 + round << ", tokens " << tokens);
    const RandomTokens input(of.shape, of.dtype, tokens, queries, random);
    StoredLayer layer = MakeLayer(of);
    layer.Store(input.host(), random() % 2 == 0 ? 1024 : 256, 30);
    std::vector<float> k, v;
    layer.Values(k, v);
    const uint64_t query_position = static_cast<uint64_t>(tokens - queries);
    AttendOutcome outcome;
    const AttendItem item = MakeItem(of.shape, of.dtype, nullptr, layer.runs(), 0, query_position,
                                     input.q_bytes, outcome);
    ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
    const ReferenceOutput expected =
        ReferenceAttention(of.shape, k, v, 0, input.q_values, query_position, item.scale);
    EXPECT_LE(WorstRelativeError(expected, outcome.output, of.shape.head_dim),
              GetParam().error_max);
    for (size_t i = 0; i < expected.log_sum_exp.size(); ++i) {
      ASSERT_NEAR(outcome.log_sum_exp[i], expected.log_sum_exp[i], 2e-3) << i;
    }
  }
}

TEST_P(PackKvContractTest, AnyRangeDecodesToThoseTokensOfTheWhole) {
  std::mt19937 random(4000);
  for (int round = 0; round < 6; ++round) {
    const Case of = RandomCase(random);
    const RandomTokens input(of.shape, of.dtype, kSinkTokens + 256, 3, random);
    StoredLayer layer = MakeLayer(of);
    layer.Store(input.host(), 256, 0);
    const TokenRun run = layer.runs()[1];
    const size_t row = of.shape.row_values();
    const std::vector<float> whole = DecodeK(of, run, 0, 256);
    for (const auto& [first, count] : {std::pair{0, 1}, {63, 2}, {64, 64}, {70, 130}, {255, 1}}) {
      const std::vector<float> part = DecodeK(of, run, first, count);
      const size_t values = static_cast<size_t>(count) * row;
      const auto at = [&](size_t token) {
        return whole.begin() + static_cast<ptrdiff_t>(token * row);
      };
      const size_t begin = static_cast<size_t>(first);
      EXPECT_TRUE(
          std::equal(part.begin(), part.begin() + static_cast<ptrdiff_t>(values), at(begin)))
          << first << ", K";
      EXPECT_TRUE(
          std::equal(part.begin() + static_cast<ptrdiff_t>(values), part.end(), at(256 + begin)))
          << first << ", V";

      // Attention over a run that is cut at both ends.
      TokenRun cut = run;
      cut.first = first;
      cut.count = count;
      const std::vector<TokenRun> runs{cut};
      const std::vector<float> k(part.begin(), part.begin() + static_cast<ptrdiff_t>(values));
      const std::vector<float> v(part.begin() + static_cast<ptrdiff_t>(values), part.end());
      const uint64_t first_position = 16 + begin;
      AttendOutcome outcome;
      const AttendItem item =
          MakeItem(of.shape, of.dtype, nullptr, runs, first_position,
                   first_position + static_cast<uint64_t>(count) - 1, input.q_bytes, outcome);
      ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
      const ReferenceOutput expected = ReferenceAttention(
          of.shape, k, v, first_position, input.q_values, item.query_position, item.scale);
      EXPECT_LE(WorstRelativeError(expected, outcome.output, of.shape.head_dim),
                GetParam().error_max)
          << first << ", " << count;
    }
  }
}

TEST_P(PackKvContractTest, ASegmentsBytesWrittenOutAndLoadedAgainAreTheSameValues) {
  std::mt19937 random(5000);
  for (int round = 0; round < 6; ++round) {
    const Case of = RandomCase(random);
    const int blocks = 1 + static_cast<int>(random() % 4);
    const RandomTokens input(of.shape, of.dtype, kSinkTokens + blocks * kBlockTokens, 1, random);
    StoredLayer layer = MakeLayer(of);
    layer.Store(input.host(), 1024, 0);
    TokenRun run = layer.runs()[1];
    const std::vector<float> before = DecodeK(of, run, 0, run.count);

    SegmentHeader header;
    backend_->ReadBytes(run.data, sizeof(header), reinterpret_cast<std::byte*>(&header));
    EXPECT_EQ(header.codec, 3);
    EXPECT_LE(header.size_bytes,
              SegmentBytes(of.shape, of.dtype, Codec::kPackKv, nullptr, run.capacity, of.options));
    std::vector<std::byte> bytes(header.size_bytes);
    backend_->ReadBytes(run.data, bytes.size(), bytes.data());
    EXPECT_EQ(ValidateSegment(bytes), absl::OkStatus());
    auto extent = backend_->Allocate("tenant", ExtentUse::kSealed, bytes.size());
    ASSERT_TRUE(extent.ok());
    backend_->WriteBytes(bytes.data(), bytes.size(), (*extent)->data());
    const SegmentGeometry geometry = GeometryOf(of, run.capacity);
    EXPECT_EQ(backend_->VerifySegment((*extent)->data(), bytes.size(), geometry), absl::OkStatus());
    run.data = (*extent)->data();
    EXPECT_EQ(DecodeK(of, run, 0, run.count), before);

    std::byte damaged = bytes[bytes.size() / 2] ^ std::byte{16};
    backend_->WriteBytes(&damaged, 1, (*extent)->data() + bytes.size() / 2);
    EXPECT_TRUE(
        absl::IsDataLoss(backend_->VerifySegment((*extent)->data(), bytes.size(), geometry)));
  }
}

// Damage that whoever makes it can hide from the checksum.
TEST_P(PackKvContractTest, HostileBodiesAreNamedThoughTheChecksumFits) {
  std::mt19937 random(5500);
  Case of;
  of.shape = {2, 2, 128, 0, 0};
  of.options.pack_tokens = 8;
  if (!backend_->Supports(of.shape, of.dtype, Codec::kPackKv, of.options).ok())
    of.options.pack_tokens = 16;
  const RandomTokens input(of.shape, of.dtype, kSinkTokens + 128, 1, random);
  StoredLayer layer = MakeLayer(of);
  layer.Store(input.host(), 1024, 0);
  SegmentHeader header;
  backend_->ReadBytes(layer.runs()[1].data, sizeof(header), reinterpret_cast<std::byte*>(&header));
  std::vector<std::byte> good(header.size_bytes);
  backend_->ReadBytes(layer.runs()[1].data, good.size(), good.data());
  auto extent = backend_->Allocate("tenant", ExtentUse::kSealed, good.size());
  ASSERT_TRUE(extent.ok());

  // gpu/FORMAT.md: where the body begins, its first token table, its first entry, its first round.
  constexpr size_t kBody = 128;
  constexpr size_t kTable = kBody + 64;
  constexpr size_t kEntry = kTable + 2 * 576;
  const size_t tiles_at = kEntry + 4 * packkv::EntryBytes(of.options.pack_tokens);
  const auto refusal = [&](size_t offset, int value) {
    std::vector<std::byte> bytes = good;
    bytes[offset] = static_cast<std::byte>(value);
    const uint64_t checksum = SegmentChecksum(bytes);
    std::memcpy(bytes.data() + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
    backend_->WriteBytes(bytes.data(), bytes.size(), (*extent)->data());
    const absl::Status status =
        backend_->VerifySegment((*extent)->data(), bytes.size(), GeometryOf(of, 128));
    EXPECT_TRUE(absl::IsDataLoss(status)) << offset << ": " << status;
    return std::string(status.message());
  };
  const auto expect_named = [&](size_t offset, int value, const std::string& what) {
    const std::string message = refusal(offset, value);
    EXPECT_EQ(message.find("segment " + what), 0u) << message;
  };
  expect_named(kBody + 8, 5, "pack_tokens is 5");
  expect_named(kBody + 10, 9, "k_bits is 9");
  expect_named(kBody + 11, 255, "v_bits is 255");
  expect_named(kBody + 9, 0, "repacking is 0");
  expect_named(kBody + 63, 1, "reserved byte is 1");
  expect_named(kTable + 1, 0xFF, "step of block 0 is");
  expect_named(kTable + 576 + 128 + 127, 0x80, "step of block 1 is");
  expect_named(kTable + 512, 64, "order of block 0 is 64");
  expect_named(kTable + 576 + 512 + 3, 200, "order of block 1 is 200");
  expect_named(kEntry + 2, 7, "offset of block 0, head 0, K");
  expect_named(kEntry + 4, 0, "offset of block 0, head 0, V");
  expect_named(kEntry + 9, 255, "round length of block 0, head 0, K");
  expect_named(offsetof(SegmentHeader, codec), 4, "codec is 4");
  // Minima take 4 bits a channel, so that widths, rows of 16 bytes, begin at byte 64; bit 2 of one
  // that is not 4 makes it larger than 4.
  expect_named(tiles_at + 64 + 2 * 16, 0xFF, "width of channel ");
}

TEST_P(PackKvContractTest, SizesAreWrittenAndBeyondTheRangeNothingIsSaid) {
  std::mt19937 random(6000);
  const Case of = RandomCase(random);
  const size_t size_bytes_max =
      SegmentBytes(of.shape, DType::kFp32, Codec::kPackKv, nullptr, kBlockTokens, of.options);
  for (const float scale : {1.0f, 0.0f, 1e38f}) {
    RandomTokens input(of.shape, DType::kFp32, kBlockTokens, 1, random);
    std::vector<float> v = ToFloats(input.v_bytes, DType::kFp32);
    for (float& value : v) value = scale == 1e38f ? scale : value * scale;
    input.v_bytes = ToBytes(v, DType::kFp32);
    auto block = backend_->Allocate("tenant", ExtentUse::kTail,
                                    ExactExtentBytes(of.shape, DType::kFp32, kBlockTokens));
    auto segment = backend_->Allocate("tenant", ExtentUse::kSealed, size_bytes_max);
    ASSERT_TRUE(block.ok() && segment.ok());
    backend_->WriteTokens(of.shape, DType::kFp32, input.host(), 0, kBlockTokens, (*block)->data(),
                          kBlockTokens, 0);
    const std::byte* const blocks[] = {(*block)->data()};
    EncodeJob job;
    job.source = {of.shape, DType::kFp32, blocks};
    job.codec = Codec::kPackKv;
    job.packkv = of.options;
    job.segment = (*segment)->data();
    backend_->Encode({&job, 1});
    ASSERT_EQ(job.in_range, scale != 1e38f);
    if (!job.in_range) continue;
    EXPECT_LE(job.size_bytes, size_bytes_max);
    SegmentHeader header;
    backend_->ReadBytes(job.segment, sizeof(header), reinterpret_cast<std::byte*>(&header));
    EXPECT_EQ(header.size_bytes, job.size_bytes);
    (*segment)->Shrink(job.size_bytes);
    const SegmentGeometry geometry{Codec::kPackKv, DType::kFp32, of.shape.kv_heads,
                                   of.shape.head_dim, kBlockTokens};
    EXPECT_EQ(backend_->VerifySegment(job.segment, (*segment)->size_bytes(), geometry),
              absl::OkStatus());
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_PACKKV_CONTRACT_H_
