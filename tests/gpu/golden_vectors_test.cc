// Segments that the independent numpy model made (tests/golden) must come out of the encoder byte
// for byte, whatever the instruction set. (That every backend reads them: golden_contract.h.)

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/golden_case.h"
#include "tests/gpu/stored_layer.h"
#include "tests/gpu/vector_targets.h"

namespace kvdepot {
namespace {

// The case's tokens as exact extents, one a block.
struct Blocks {
  std::vector<std::unique_ptr<Extent>> extents;
  std::vector<const std::byte*> pointers;
};

Blocks WriteBlocks(Backend& backend, const GoldenCase& golden) {
  Blocks blocks;
  const DenseTokens tokens{golden.k.data(), golden.v.data(), golden.tokens};
  for (int token = 0; token < golden.tokens; token += kBlockTokens) {
    auto extent = backend.Allocate("tenant", ExtentUse::kTail,
                                   ExactExtentBytes(golden.shape, golden.dtype, kBlockTokens));
    EXPECT_TRUE(extent.ok());
    backend.WriteTokens(golden.shape, golden.dtype, tokens, token, kBlockTokens, (*extent)->data(),
                        kBlockTokens, 0);
    blocks.pointers.push_back((*extent)->data());
    blocks.extents.push_back(*std::move(extent));
  }
  return blocks;
}

class GoldenVectorsTest : public ::testing::TestWithParam<std::filesystem::path> {};

TEST_P(GoldenVectorsTest, EncoderWritesTheSameBytesOnEveryTarget) {
  const GoldenCase golden = ReadGoldenCase(GetParam());
  ForEachVectorTarget([&] {
    const auto backend = MakeCpuBackend(2);
    const Blocks blocks = WriteBlocks(*backend, golden);
    const SealBlocks source{golden.shape, golden.dtype, blocks.pointers};
    if (golden.own) {
      const LayerCalibration own =
          backend->DeriveCalibrations({{source, golden.profile, golden.q2}})[0];
      EXPECT_EQ(own.hash_prefix, golden.calibration.hash_prefix);
    }
    const Codec codec = golden.codec == Codec::kPackKv ? Codec::kPackKv : Codec::kPlanes;
    const LayerCalibration* const calibration =
        codec == Codec::kPlanes ? &golden.calibration : nullptr;
    auto segment = backend->Allocate(
        "tenant", ExtentUse::kSealed,
        SegmentBytes(golden.shape, golden.dtype, codec, calibration, golden.tokens, golden.packkv));
    ASSERT_TRUE(segment.ok());
    const bool in_range =
        EncodeOne(*backend, source, codec, calibration, (*segment)->data(), golden.packkv);
    ASSERT_EQ(in_range, golden.codec == codec);
    if (!in_range) {
      segment = backend->Allocate(
          "tenant", ExtentUse::kSealed,
          SegmentBytes(golden.shape, golden.dtype, Codec::kRaw, nullptr, golden.tokens));
      ASSERT_TRUE(EncodeOne(*backend, source, Codec::kRaw, nullptr, (*segment)->data()));
    }
    ASSERT_EQ(SegmentView::Of((*segment)->data()).size_bytes(), golden.segment.size());
    const auto mismatch =
        std::mismatch(golden.segment.begin(), golden.segment.end(), (*segment)->data()).first -
        golden.segment.begin();
    EXPECT_EQ(static_cast<size_t>(mismatch), golden.segment.size())
        << "first difference at this byte";
  });
}

// How a device checks a segment that the host cannot read.
TEST_P(GoldenVectorsTest, FirstBytesAndChecksumAreEnoughToValidate) {
  const GoldenCase golden = ReadGoldenCase(GetParam());
  const size_t size_bytes = golden.segment.size();
  const uint64_t checksum = SegmentChecksum(golden.segment);
  const auto first_bytes =
      absl::MakeConstSpan(golden.segment).subspan(0, SegmentHeaderBytes(golden.shape.kv_heads));
  EXPECT_EQ(ValidateSegment(first_bytes, size_bytes, checksum), absl::OkStatus());
  EXPECT_TRUE(absl::IsDataLoss(ValidateSegment(first_bytes, size_bytes, checksum + 1)));
  EXPECT_TRUE(absl::IsDataLoss(ValidateSegment(first_bytes, size_bytes - 128, checksum)));
}

// Everything but the version fits: the checksum too.
TEST(SegmentVersionTest, OtherVersionsAreRefusedByNumber) {
  std::vector<std::byte> segment =
      ReadGoldenCase(GoldenFiles(kSegmentFormatVersion).front()).segment;
  ASSERT_TRUE(ValidateSegment(segment).ok()) << ValidateSegment(segment);
  for (const uint16_t version : {0, 2, 256, 65535}) {
    memcpy(segment.data() + offsetof(SegmentHeader, version), &version, sizeof(version));
    const uint64_t checksum = SegmentChecksum(segment);
    memcpy(segment.data() + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
    EXPECT_EQ(ValidateSegment(segment),
              absl::DataLossError("segment version is " + std::to_string(version) +
                                  ", expected 1, the only one that this build reads"));
  }
}

INSTANTIATE_TEST_SUITE_P(Vectors, GoldenVectorsTest,
                         ::testing::ValuesIn(GoldenFiles(kSegmentFormatVersion)),
                         [](const auto& vector) { return vector.param.stem().string(); });

}  // namespace
}  // namespace kvdepot
