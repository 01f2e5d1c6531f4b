#include "gpu/packkv/cuda_support.h"

#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvdepot::packkv {
namespace {

LayerShape ShapeOf(int head_dim) {
  LayerShape shape;
  shape.kv_heads = 8;
  shape.query_heads = 32;
  shape.head_dim = head_dim;
  return shape;
}

TEST(PackKvCudaSupport, DefaultsAndMedianAtBothHeadDims) {
  Options options;
  EXPECT_TRUE(SupportedOnCuda(ShapeOf(64), options).ok());
  EXPECT_TRUE(SupportedOnCuda(ShapeOf(128), options).ok());
  options.repacking = Repacking::kMedian;
  EXPECT_TRUE(SupportedOnCuda(ShapeOf(128), options).ok());
}

TEST(PackKvCudaSupport, WhatIsNotBuiltIsUnimplementedByItsName) {
  const auto expect = [](const absl::Status& status, const std::string& message) {
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_NE(status.message().find(message), absl::string_view::npos) << status;
  };
  expect(SupportedOnCuda(ShapeOf(256), {}), "head_dim: 256");
  expect(SupportedOnCuda(ShapeOf(128), DefaultOptions(/*normalize=*/true)), "packkv.normalize");
  Options options;
  options.pack_tokens = 8;
  expect(SupportedOnCuda(ShapeOf(128), options), "packkv.pack_tokens: 8");
  options = {};
  options.repacking = Repacking::kGreedy;
  expect(SupportedOnCuda(ShapeOf(128), options), "packkv.repacking: GREEDY");
}

// Kernels read codes as nibbles.
TEST(PackKvCudaSupport, FinerScalesThanFourBitsHoldAreRefused) {
  for (float Options::*scale : {&Options::k_relative_scale, &Options::v_relative_scale}) {
    Options options;
    options.*scale = 0.0776f;
    EXPECT_TRUE(SupportedOnCuda(ShapeOf(128), options).ok());
    options.*scale = 0.07f;
    const absl::Status status = SupportedOnCuda(ShapeOf(128), options);
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_NE(status.message().find("_relative_scale: 0.07,"), absl::string_view::npos) << status;
  }
}

TEST(PackKvCudaSupport, WhatKernelsCannotReadIsNamed) {
  BodyHeader good = {};
  good.pack_tokens = 16;
  good.k_bits = 4;
  EXPECT_EQ(CheckReadableOnCuda(128, good), absl::OkStatus());
  EXPECT_EQ(CheckReadableOnCuda(64, good), absl::OkStatus());
  EXPECT_EQ(CheckReadableOnCuda(256, good).message(),
            "segment head_dim is 256, expected 64 or 128 on a GPU");
  const auto refusal = [&](uint8_t BodyHeader::*field, uint8_t value) {
    BodyHeader header = good;
    header.*field = value;
    const absl::Status status = CheckReadableOnCuda(128, header);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(refusal(&BodyHeader::pack_tokens, 8), "segment pack_tokens is 8, expected 16 on a GPU");
  EXPECT_EQ(refusal(&BodyHeader::form, 1), "segment form is 1, expected 0 (tokens) on a GPU");
  EXPECT_EQ(refusal(&BodyHeader::k_bits, 5), "segment k_bits is 5, expected at most 4 on a GPU");
  EXPECT_EQ(refusal(&BodyHeader::v_bits, 8), "segment v_bits is 8, expected at most 4 on a GPU");
}

}  // namespace
}  // namespace kvdepot::packkv
