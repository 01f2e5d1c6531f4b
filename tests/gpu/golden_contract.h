// The part of the backends' suite (backend_contract.h) that is about the promise of gpu/FORMAT.md:
// segments that were committed for a version of the format are read to the same values for ever,
// those of versions that there are not are refused.
#ifndef KVDEPOT_TESTS_GPU_GOLDEN_CONTRACT_H_
#define KVDEPOT_TESTS_GPU_GOLDEN_CONTRACT_H_

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/backend_contract.h"
#include "tests/gpu/golden_case.h"

namespace kvdepot {

class GoldenContractTest : public BackendContractTest {};

// The bytes are those of the files, not of today's encoder: a reader that no longer understands
// what an earlier build has written fails here.
TEST_P(GoldenContractTest, CommittedSegmentsOfVersion1HoldTheModelsValues) {
  std::mt19937 random(10);
  int read[kCodecCount] = {};
  int unsupported = 0;
  for (const std::filesystem::path& path : GoldenFiles(1)) {
    SCOPED_TRACE(path.stem());
    const GoldenCase golden = ReadGoldenCase(path);
    if (absl::IsUnimplemented(
            backend_->Supports(golden.shape, golden.dtype, golden.codec, golden.packkv))) {
      ++unsupported;
      continue;
    }
    ++read[CodecIndex(golden.codec)];
    auto extent = backend_->Allocate("tenant", ExtentUse::kSealed, golden.segment.size());
    ASSERT_TRUE(extent.ok());
    std::byte* const segment = (*extent)->data();
    backend_->WriteBytes(golden.segment.data(), golden.segment.size(), segment);
    EXPECT_EQ(backend_->VerifySegment(segment, golden.segment.size(),
                                      {golden.codec, golden.dtype, golden.shape.kv_heads,
                                       golden.shape.head_dim, golden.tokens}),
              absl::OkStatus());

    const LayerCalibration* const calibration =
        golden.codec == Codec::kPlanes ? &golden.calibration : nullptr;
    const std::vector<TokenRun> runs{
        {SegmentForm(golden.codec), segment, golden.tokens, 0, golden.tokens}};
    std::vector<float> k(golden.k_values.size()), v(golden.v_values.size());
    backend_->Decode(golden.shape, golden.dtype, calibration, runs, DType::kFp32,
                     MemorySpace::kHost, reinterpret_cast<std::byte*>(k.data()),
                     reinterpret_cast<std::byte*>(v.data()));
    EXPECT_EQ(k, golden.k_values);
    EXPECT_EQ(v, golden.v_values);

    // Attention reads segments by a way of its own. The other files hold values that no attention
    // has an error bound for.
    if (path.stem().string().find("normal") == std::string::npos) continue;
    const RandomTokens queries(golden.shape, golden.dtype, 1, 3, random);
    const uint64_t query_position = static_cast<uint64_t>(golden.tokens) - 3;
    AttendOutcome outcome;
    const AttendItem item = MakeItem(golden.shape, golden.dtype, calibration, runs, 0,
                                     query_position, queries.q_bytes, outcome);
    ASSERT_TRUE(backend_->Attend({&item, 1}).ok());
    const ReferenceOutput expected =
        ReferenceAttention(golden.shape, golden.k_values, golden.v_values, 0, queries.q_values,
                           query_position, item.scale);
    EXPECT_LE(WorstRelativeError(expected, outcome.output, golden.shape.head_dim),
              GetParam().spike_error_max);
  }
  for (const Codec codec : kCodecs) EXPECT_GT(read[CodecIndex(codec)], 0) << CodecName(codec);
  // A GPU need not have all that packkv may be asked for.
  if (backend_->name() == "cpu") {
    EXPECT_EQ(unsupported, 0);
  }
}

// Everything but the version fits: the checksum, too.
TEST_P(GoldenContractTest, SegmentsOfOtherVersionsAreRefusedByNumber) {
  const GoldenCase golden = ReadGoldenCase(GoldenFiles(1).front());
  const SegmentGeometry geometry{golden.codec, golden.dtype, golden.shape.kv_heads,
                                 golden.shape.head_dim, golden.tokens};
  auto extent = backend_->Allocate("tenant", ExtentUse::kSealed, golden.segment.size());
  ASSERT_TRUE(extent.ok());
  for (const uint16_t version : {uint16_t{0}, uint16_t{2}, uint16_t{256}, uint16_t{65535}}) {
    std::vector<std::byte> segment = golden.segment;
    memcpy(segment.data() + offsetof(SegmentHeader, version), &version, sizeof(version));
    const uint64_t checksum = SegmentChecksum(segment);
    memcpy(segment.data() + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
    backend_->WriteBytes(segment.data(), segment.size(), (*extent)->data());
    EXPECT_EQ(
        backend_->VerifySegment((*extent)->data(), segment.size(), geometry),
        absl::DataLossError(absl::StrCat("segment version is ", version,
                                         ", expected 1, the only one that this build reads")));
  }
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_GOLDEN_CONTRACT_H_
