// Segments that the independent numpy model made (tests/golden) must come out of the encoder byte
// for byte, and be read back to the same values whatever the instruction set.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "gpu/segment_view.h"
#include "gtest/gtest.h"
#include "tests/gpu/vector_targets.h"

namespace kvdepot {
namespace {

struct GoldenCase {
  LayerShape shape;
  DType dtype = DType::kBf16;
  int tokens = 0;
  Codec codec = Codec::kPlanes;
  bool own = false;
  Profile profile = Profile::kCompact;
  LayerCalibration calibration;
  std::vector<float> q2;
  std::vector<std::byte> k;
  std::vector<std::byte> v;
  std::vector<std::byte> segment;
};

class Reader {
 public:
  explicit Reader(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  template <class T>
  T Number() {
    T value;
    Copy(&value, sizeof(value));
    return value;
  }
  void Copy(void* to, size_t count) {
    ASSERT_LE(offset_ + count, bytes_.size());
    memcpy(to, bytes_.data() + offset_, count);
    offset_ += count;
  }
  bool at_end() const { return offset_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t offset_ = 0;
};

TensorLayout ReadLayout(Reader& reader, int head_dim) {
  TensorLayout layout;
  layout.order.resize(static_cast<size_t>(head_dim));
  reader.Copy(layout.order.data(), layout.order.size());
  layout.pattern = reader.Number<uint8_t>();
  return layout;
}

// The container is described in tests/golden/make_vectors.py.
GoldenCase ReadCase(const std::filesystem::path& path) {
  Reader reader(path);
  char magic[8];
  reader.Copy(magic, sizeof(magic));
  EXPECT_EQ(memcmp(magic, "KVDGOLD0", 8), 0) << path;
  GoldenCase golden;
  golden.shape.kv_heads = static_cast<int>(reader.Number<uint32_t>());
  golden.shape.query_heads = golden.shape.kv_heads;
  golden.shape.head_dim = static_cast<int>(reader.Number<uint32_t>());
  golden.dtype = static_cast<DType>(reader.Number<uint32_t>());
  golden.tokens = static_cast<int>(reader.Number<uint32_t>());
  golden.codec = static_cast<Codec>(reader.Number<uint32_t>());
  golden.own = reader.Number<uint32_t>() != 0;
  golden.profile = static_cast<Profile>(reader.Number<uint32_t>());
  const bool has_q2 = reader.Number<uint32_t>() != 0;
  for (int head = 0; head < golden.shape.kv_heads; ++head) {
    HeadLayout layout;
    layout.k = ReadLayout(reader, golden.shape.head_dim);
    layout.v = ReadLayout(reader, golden.shape.head_dim);
    golden.calibration.heads.push_back(layout);
  }
  reader.Copy(golden.calibration.hash_prefix.data(), 16);
  if (has_q2) {
    golden.q2.resize(golden.shape.row_values());
    reader.Copy(golden.q2.data(), golden.q2.size() * sizeof(float));
  }
  const size_t tensor_bytes =
      golden.shape.row_values() * static_cast<size_t>(golden.tokens) * DTypeBytes(golden.dtype);
  golden.k.resize(tensor_bytes);
  golden.v.resize(tensor_bytes);
  reader.Copy(golden.k.data(), tensor_bytes);
  reader.Copy(golden.v.data(), tensor_bytes);
  golden.segment.resize(reader.Number<uint64_t>());
  reader.Copy(golden.segment.data(), golden.segment.size());
  EXPECT_TRUE(reader.at_end()) << path;
  return golden;
}

std::vector<std::filesystem::path> VectorFiles() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator("tests/golden/vectors")) {
    if (entry.path().extension() == ".bin") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// The case's tokens as exact extents, one a block.
struct Blocks {
  std::vector<std::unique_ptr<Extent>> extents;
  std::vector<const std::byte*> pointers;
};

Blocks WriteBlocks(Backend& backend, const GoldenCase& golden) {
  Blocks blocks;
  const HostTokens tokens{golden.k.data(), golden.v.data(), golden.tokens};
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
  const GoldenCase golden = ReadCase(GetParam());
  ForEachVectorTarget([&] {
    const auto backend = MakeCpuBackend(2);
    const Blocks blocks = WriteBlocks(*backend, golden);
    const SealBlocks source{golden.shape, golden.dtype, blocks.pointers};
    if (golden.own) {
      const LayerCalibration own = backend->DeriveCalibration(source, golden.profile, golden.q2);
      EXPECT_EQ(own.hash_prefix, golden.calibration.hash_prefix);
    }
    auto segment = backend->Allocate("tenant", ExtentUse::kSealed,
                                     SegmentBytes(golden.shape, golden.dtype, Codec::kPlanes,
                                                  &golden.calibration, golden.tokens));
    ASSERT_TRUE(segment.ok());
    const bool in_range =
        backend->Encode(source, Codec::kPlanes, &golden.calibration, (*segment)->data());
    ASSERT_EQ(in_range, golden.codec == Codec::kPlanes);
    if (!in_range) {
      segment = backend->Allocate(
          "tenant", ExtentUse::kSealed,
          SegmentBytes(golden.shape, golden.dtype, Codec::kRaw, nullptr, golden.tokens));
      ASSERT_TRUE(backend->Encode(source, Codec::kRaw, nullptr, (*segment)->data()));
    }
    ASSERT_EQ((*segment)->size_bytes(), golden.segment.size());
    const auto mismatch =
        std::mismatch(golden.segment.begin(), golden.segment.end(), (*segment)->data()).first -
        golden.segment.begin();
    EXPECT_EQ(static_cast<size_t>(mismatch), golden.segment.size())
        << "first difference at this byte";
    EXPECT_TRUE(ValidateSegment(golden.segment).ok()) << ValidateSegment(golden.segment);
  });
}

INSTANTIATE_TEST_SUITE_P(Vectors, GoldenVectorsTest, ::testing::ValuesIn(VectorFiles()),
                         [](const auto& vector) { return vector.param.stem().string(); });

}  // namespace
}  // namespace kvdepot
