// A safetensors file comes from anywhere: mostly what must be refused.
#include "client/safetensors.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

std::string File(const std::string& header, const std::string& data,
                 absl::optional<uint64_t> stated_length = absl::nullopt) {
  std::string file;
  const uint64_t length = stated_length.value_or(header.size());
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(length >> (8 * i)));
  return file + header + data;
}

// The header's entry of one U8 vector.
std::string Entry(const std::string& name, const std::string& size, const std::string& begin,
                  const std::string& end) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"U8\",\"shape\":[", size, "],\"data_offsets\":[",
                      begin, ",", end, "]}");
}

std::string Problem(const std::string& file) {
  const auto parsed = Safetensors::Parse(file);
  EXPECT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(parsed.status().message());
}

TEST(SafetensorsTest, ReadsTensorsAndMetadata) {
  const auto file =
      Safetensors::Parse(File("{\"__metadata__\":{\"model\":\"M\"},"
                              "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[3,7]}," +
                                  Entry("a", "3", "0", "3") + "}   ",
                              "xyz1234"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata().at("model"), "M");
  EXPECT_EQ(file->Find("a")->data, "xyz");
  EXPECT_EQ(file->Find("b")->data, "1234");
  EXPECT_EQ(file->Find("b")->dtype, "BF16");
  EXPECT_EQ(file->Find("b")->shape, (std::vector<uint64_t>{2, 1}));
  EXPECT_EQ(file->Find("c").status().code(), absl::StatusCode::kNotFound);
}

TEST(SafetensorsTest, DataStaysWhereItIsWhenTheObjectMoves) {
  auto file = Safetensors::Parse(File("{" + Entry("a", "1", "0", "1") + "}", "x"));
  ASSERT_TRUE(file.ok());
  const Safetensors moved = *std::move(file);
  EXPECT_EQ(moved.Find("a")->data, "x");
}

TEST(SafetensorsTest, EmptyAndScalarTensorsAreFine) {
  const auto file = Safetensors::Parse(
      File("{" + Entry("empty", "0", "0", "0") + "," + Entry("scalar", "", "0", "1") + "}", "x"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Find("scalar")->data, "x");
  EXPECT_TRUE(Safetensors::Parse(File("{}", "")).ok());
}

TEST(SafetensorsTest, RefusesTruncatedFiles) {
  const std::string whole = File("{" + Entry("a", "4", "0", "4") + "}", "wxyz");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Safetensors::Parse(whole.substr(0, size)).ok()) << size;
  }
  EXPECT_TRUE(Safetensors::Parse(whole).ok());
}

TEST(SafetensorsTest, RefusesHugeHeaderLengths) {
  for (const uint64_t length : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{1} << 32, uint64_t{3}}) {
    EXPECT_NE(Problem(File("{}", "", length)).find("header"), std::string::npos) << length;
  }
}

TEST(SafetensorsTest, RefusesHeadersAboveTheLimitEvenIfTheyAreThere) {
  Problem(File("{}" + std::string(kSafetensorsHeaderBytesMax, ' '), ""));
}

TEST(SafetensorsTest, RefusesOffsetsOutsideTheData) {
  Problem(File("{" + Entry("a", "5", "0", "5") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "4", "0") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "-1", "3") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "0.5", "4.5") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "0", "1e300") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "0", "18446744073709551616") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "\"0\"", "\"4\"") + "}", "wxyz"));
}

TEST(SafetensorsTest, RefusesShapesThatDoNotTakeTheirBytes) {
  Problem(File("{" + Entry("a", "3", "0", "4") + "}", "wxyz"));
  // 2^32 * 2^32 * 4 overflows to 0.
  Problem(File("{" + Entry("a", "4294967296,4294967296", "0", "0") + "}", ""));
  Problem(File("{" + Entry("a", "-2,-2", "0", "4") + "}", "wxyz"));
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  EXPECT_NE(
      Problem(File("{" + Entry("a", "3", "0", "3") + "," + Entry("b", "3", "1", "4") + "}", "wxyz"))
          .find("overlap"),
      std::string::npos);
  Problem(File("{" + Entry("a", "1", "0", "1") + "," + Entry("b", "1", "3", "4") + "}", "wxyz"));
  Problem(File("{" + Entry("a", "4", "0", "4") + "}", "wxyz and more"));
}

TEST(SafetensorsTest, RefusesWhatIsNoHeader) {
  Problem(File("", ""));
  Problem(File("[]", ""));
  Problem(File("{\"a\":1}", ""));
  Problem(File("{\"a\":{}}", ""));
  Problem(File("{\"a\":{\"dtype\":\"Q3\",\"shape\":[1],\"data_offsets\":[0,1]}}", "x"));
  Problem(File("{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", "x"));
  Problem(File("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", "x"));
  Problem(File("{\"a\":" + std::string(100000, '['), ""));
}

TEST(SafetensorsTest, LoadNamesTheFile) {
  const auto file = Safetensors::Load("/nowhere/at.all");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(file.status().message().find("/nowhere/at.all"), absl::string_view::npos);
}

}  // namespace
}  // namespace kvdepot
