// What the demo reads and which bounds it holds itself to; tests/integration/demo_test runs it.
#include <cmath>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "client/cli/demo_data.h"
#include "client/cli/demo_report.h"
#include "gtest/gtest.h"

namespace kvdepot::cli {
namespace {

std::string WriteFile(const std::string& q_shape) {
  const std::string header = absl::StrCat(
      "{\"__metadata__\":{\"model\":\"M\"},"
      "\"layers.5.k\":{\"dtype\":\"BF16\",\"shape\":[3,1,2],\"data_offsets\":[0,12]},"
      "\"layers.5.q\":{\"dtype\":\"BF16\",\"shape\":",
      q_shape,
      ",\"data_offsets\":[12,28]},"
      "\"layers.5.v\":{\"dtype\":\"BF16\",\"shape\":[3,1,2],\"data_offsets\":[28,40]}}");
  const std::string path = absl::StrCat(::testing::TempDir(), "/demo.safetensors");
  std::ofstream file(path, std::ios::binary);
  for (int i = 0; i < 8; ++i) file.put(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  file << header;
  // bf16 1.0 is 3F80.
  for (int i = 0; i < 20; ++i) file << '\x80' << '\x3F';
  return path;
}

TEST(DemoDataTest, ReadsShapesFromTheFile) {
  const auto data = LoadDemoData(WriteFile("[2,2,2]"));
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(data->model, "M");
  EXPECT_EQ(data->layer, 5);
  EXPECT_EQ(data->query_count, 2);
  EXPECT_EQ(data->query_heads, 2);
  EXPECT_EQ(data->kv.token_count, 3);
  EXPECT_EQ(data->kv.k, std::vector<float>(6, 1.0f));
  EXPECT_EQ(data->QueryBytes(1).size(), 8u);
}

TEST(DemoDataTest, RefusesTensorsThatDoNotFit) {
  for (const char* q_shape : {"[2,4,1]", "[8]", "[0,2,2]"}) {
    EXPECT_EQ(LoadDemoData(WriteFile(q_shape)).status().code(), absl::StatusCode::kInvalidArgument)
        << q_shape;
  }
}

DemoResult GoodResult() {
  DemoResult result;
  result.bits_per_value = 2.5;
  result.relative_error = 0.1;
  result.reference_relative_error = 0.1;
  return result;
}

TEST(DemoResultTest, NamesEachMissedBound) {
  EXPECT_TRUE(GoodResult().MissedBounds().empty());
  DemoResult result = GoodResult();
  result.bits_per_value = 2.61;
  ASSERT_EQ(result.MissedBounds().size(), 1u);
  EXPECT_EQ(result.MissedBounds()[0], "bits_per_value 2.610 is above 2.60");
  result.relative_error = NAN;
  EXPECT_EQ(result.MissedBounds().size(), 2u);
}

}  // namespace
}  // namespace kvdepot::cli
