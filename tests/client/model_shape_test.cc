#include "client/cli/model_shape.h"

#include <string>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvdepot::cli {
namespace {

std::string TextOf(const std::string& written) {
  const auto groups = ParseModelShape(written);
  return groups.ok() ? ModelShapeText(*groups) : std::string(groups.status().message());
}

TEST(ModelShapeTest, LayersThatAreAlikeOrNot) {
  EXPECT_EQ(TextOf("28x2x128"), "28 layers of 2 KV heads of 128");
  EXPECT_EQ(TextOf("1x1x64"), "1 layer of 1 KV head of 64");
  EXPECT_EQ(TextOf("40x4x256w1024,8x4x256"),
            "40 layers of 4 KV heads of 256 (window 1024), 8 layers of 4 KV heads of 256");
}

TEST(ModelShapeTest, WhatIsNoneIsRefusedByPart) {
  constexpr char kForm[] = "must be LAYERSxKV_HEADSxHEAD_DIM, as 28x2x128";
  for (const char* text : {"", "28", "28x2", "28x2x128x4", "28x-2x128", "0x2x128", "axbxc"}) {
    EXPECT_EQ(TextOf(text), "'" + std::string(text) + "': " + kForm);
    EXPECT_TRUE(absl::IsInvalidArgument(ParseModelShape(text).status()));
  }
  EXPECT_EQ(TextOf("28x2x128,"), std::string("'': ") + kForm);
  EXPECT_EQ(TextOf("28x2x96"), "'28x2x96': head_dim must be 64, 128 or 256");
  EXPECT_EQ(TextOf("28x1025x64"), "'28x1025x64': KV heads must be 1..1024");
  EXPECT_EQ(TextOf("5000x1x64"), "'5000x1x64': layers must be 1..4096");
  EXPECT_EQ(TextOf("28x2x128w0"),
            "'28x2x128w0': behind w comes a sliding window of at least 1 token");
  EXPECT_EQ(TextOf("28x2x128w"),
            "'28x2x128w': behind w comes a sliding window of at least 1 token");
}

}  // namespace
}  // namespace kvdepot::cli
