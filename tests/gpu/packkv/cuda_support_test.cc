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

}  // namespace
}  // namespace kvdepot::packkv
