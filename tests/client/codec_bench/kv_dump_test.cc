// Which files are dumps, and what is said of those that are not.
#include "client/codec_bench/kv_dump.h"

#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

struct Entry {
  std::string name;
  std::string dtype;
  std::vector<int> shape;
  std::string value;  // Bytes of every number.
};

std::string WriteDump(const std::vector<Entry>& entries) {
  std::string header = "{\"__metadata__\":{\"model\":\"M\"}";
  std::string data;
  for (const Entry& entry : entries) {
    size_t count = 1;
    std::string shape;
    for (const int size : entry.shape) {
      absl::StrAppend(&shape, shape.empty() ? "" : ",", size);
      count *= static_cast<size_t>(size);
    }
    const size_t begin = data.size();
    for (size_t i = 0; i < count; ++i) data += entry.value;
    absl::StrAppend(&header, ",\"", entry.name, "\":{\"dtype\":\"", entry.dtype, "\",\"shape\":[",
                    shape, "],\"data_offsets\":[", begin, ",", data.size(), "]}");
  }
  header += "}";
  const std::string path = absl::StrCat(::testing::TempDir(), "/dump.safetensors");
  std::ofstream file(path, std::ios::binary);
  for (int i = 0; i < 8; ++i) file.put(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  file << header << data;
  return path;
}

const std::string kOneBf16 = "\x80\x3F";
const std::string kOneFp16 = std::string("\0", 1) + "\x3C";
const std::string kOneFp32 = std::string("\0\0", 2) + "\x80\x3F";

std::vector<Entry> Layer(int number, const std::string& dtype, const std::string& value) {
  const std::string prefix = absl::StrCat("layers.", number, ".");
  return {{prefix + "k", dtype, {5, 2, 64}, value},
          {prefix + "v", dtype, {5, 2, 64}, value},
          {prefix + "q", dtype, {3, 4, 64}, value}};
}

absl::Status Refusal(const std::vector<Entry>& entries, const DumpSelection& selection = {}) {
  return LoadKvDump(WriteDump(entries), selection).status();
}

TEST(KvDumpTest, ReadsEveryDtype) {
  for (const auto& [name, dtype, value] : {std::make_tuple("BF16", DType::kBf16, kOneBf16),
                                           std::make_tuple("F16", DType::kFp16, kOneFp16),
                                           std::make_tuple("F32", DType::kFp32, kOneFp32)}) {
    const auto dump = LoadKvDump(WriteDump(Layer(7, name, value)), {});
    ASSERT_TRUE(dump.ok()) << dump.status();
    EXPECT_EQ(dump->model, "M");
    ASSERT_EQ(dump->layers.size(), 1u);
    const DumpLayer& layer = dump->layers[0];
    EXPECT_EQ(layer.number, 7);
    EXPECT_EQ(layer.dtype, dtype);
    EXPECT_EQ(layer.shape.kv_heads, 2);
    EXPECT_EQ(layer.shape.query_heads, 4);
    EXPECT_EQ(layer.query_count, 3);
    EXPECT_EQ(layer.kv.token_count, 5);
    EXPECT_EQ(layer.kv.k, std::vector<float>(5 * 2 * 64, 1.0f));
    EXPECT_EQ(FloatsOf(dtype, layer.QueryBytes(2)), std::vector<float>(4 * 64, 1.0f));
  }
}

TEST(KvDumpTest, SelectsLayersAndTokens) {
  std::vector<Entry> entries = Layer(2, "BF16", kOneBf16);
  for (const Entry& entry : Layer(10, "BF16", kOneBf16)) entries.push_back(entry);
  const auto dump = LoadKvDump(WriteDump(entries), {{10}, 4});
  ASSERT_TRUE(dump.ok()) << dump.status();
  EXPECT_EQ(dump->layer_count, 2);
  ASSERT_EQ(dump->layers.size(), 1u);
  EXPECT_EQ(dump->layers[0].place, 1);
  EXPECT_EQ(dump->layers[0].kv.token_count, 4);
  EXPECT_EQ(dump->layers[0].v.size(), 4u * 2 * 64 * 2);

  EXPECT_EQ(Refusal(entries, {{3}, 0}).code(), absl::StatusCode::kNotFound);
  const absl::Status tokens = Refusal(entries, {{}, 6});
  EXPECT_EQ(tokens.code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(absl::StrContains(tokens.message(), "tokens: 6, layers.2.k has 5")) << tokens;
}

TEST(KvDumpTest, DrawsQueriesThatTheDumpLacks) {
  std::vector<Entry> entries = Layer(0, "F32", kOneFp32);
  entries.pop_back();
  const auto dump = LoadKvDump(WriteDump(entries), {});
  ASSERT_TRUE(dump.ok()) << dump.status();
  const DumpLayer& layer = dump->layers[0];
  EXPECT_TRUE(layer.queries_are_drawn);
  EXPECT_EQ(layer.shape.query_heads, 2);
  EXPECT_EQ(layer.q.size(), static_cast<size_t>(layer.query_count) * 2 * 64 * 4);
}

TEST(KvDumpTest, SaysWhatIsWrong) {
  EXPECT_EQ(LoadKvDump("/no/such/file", {}).status().code(), absl::StatusCode::kNotFound);
  const auto with = [](size_t index, const Entry& changed) {
    std::vector<Entry> entries = Layer(1, "BF16", kOneBf16);
    entries[index] = changed;
    return entries;
  };
  const std::string nan = "\xC0\x7F";
  for (const auto& [entries, message] : std::vector<std::pair<std::vector<Entry>, std::string>>{
           {{}, "no tensor is named layers.N.k"},
           {with(0, {"layers.1.k", "I8", {5, 2, 64}, "a"}), "dtype I8, must be BF16, F16 or F32"},
           {with(0, {"layers.1.k", "BF16", {5, 128}, kOneBf16}), "k: shape [5, 128], must be"},
           {with(0, {"layers.1.k", "BF16", {5, 2, 32}, kOneBf16}), "v: shape [5, 2, 64] of BF16"},
           {with(1, {"layers.1.v", "F16", {5, 2, 64}, kOneFp16}), "v: shape [5, 2, 64] of F16"},
           {with(2, {"layers.1.q", "BF16", {3, 4, 128}, kOneBf16}), "q: shape [3, 4, 128]"},
           {with(2, {"layers.1.q", "BF16", {3, 3, 64}, kOneBf16}), "q: 3 query heads, must be"},
           {with(2, {"layers.1.q", "BF16", {3, 34, 64}, kOneBf16}), "q: 34 query heads, must be"},
           {with(1, {"layers.1.v", "BF16", {5, 2, 64}, nan}), "v: value 0 is nan"}}) {
    const absl::Status status = Refusal(entries);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), message)) << status;
  }
  std::vector<Entry> narrow = {{"layers.1.k", "BF16", {5, 2, 32}, kOneBf16},
                               {"layers.1.v", "BF16", {5, 2, 32}, kOneBf16}};
  EXPECT_TRUE(absl::StrContains(Refusal(narrow).message(), "head_dim 32, must be 64, 128 or 256"));
  narrow.pop_back();
  EXPECT_EQ(Refusal(narrow).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvdepot
