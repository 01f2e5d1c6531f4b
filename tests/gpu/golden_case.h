// Segments and their values as the independent numpy model made them (tests/golden), from files
// that are committed for every version of the format.
#ifndef KVDEPOT_TESTS_GPU_GOLDEN_CASE_H_
#define KVDEPOT_TESTS_GPU_GOLDEN_CASE_H_

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gpu/calibration.h"
#include "gpu/packkv/format.h"
#include "gpu/packkv/options.h"
#include "gpu/segment_header.h"
#include "gpu/shape.h"
#include "gtest/gtest.h"

namespace kvdepot {

struct GoldenCase {
  LayerShape shape;
  DType dtype = DType::kBf16;
  int tokens = 0;
  Codec codec = Codec::kPlanes;
  bool own = false;
  Profile profile = Profile::kCompact;
  LayerCalibration calibration;
  packkv::Options packkv;
  std::vector<float> q2;
  std::vector<std::byte> k;
  std::vector<std::byte> v;
  std::vector<std::byte> segment;
  // What the segment decodes to: [token][kv_head][channel].
  std::vector<float> k_values;
  std::vector<float> v_values;
};

namespace golden_file {

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

inline TensorLayout ReadLayout(Reader& reader, int head_dim) {
  TensorLayout layout;
  layout.order.resize(static_cast<size_t>(head_dim));
  reader.Copy(layout.order.data(), layout.order.size());
  layout.pattern = reader.Number<uint8_t>();
  return layout;
}

}  // namespace golden_file

// Those that a packkv segment was made by, which are in its body's header.
inline packkv::Options PackKvOptionsOf(const GoldenCase& golden) {
  packkv::BodyHeader header;
  memcpy(&header, golden.segment.data() + SegmentHeaderBytes(golden.shape.kv_heads),
         sizeof(header));
  packkv::Options options;
  options.k_relative_scale = header.k_relative_scale;
  options.v_relative_scale = header.v_relative_scale;
  options.pack_tokens = header.pack_tokens;
  options.repacking = static_cast<packkv::Repacking>(header.repacking);
  options.normalize = header.form == static_cast<uint8_t>(packkv::Form::kNormalized);
  return options;
}

// The container is described in tests/golden/make_vectors.py.
inline GoldenCase ReadGoldenCase(const std::filesystem::path& path) {
  golden_file::Reader reader(path);
  char magic[8];
  reader.Copy(magic, sizeof(magic));
  EXPECT_EQ(memcmp(magic, "KVDGOLD1", 8), 0) << path;
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
    layout.k = golden_file::ReadLayout(reader, golden.shape.head_dim);
    layout.v = golden_file::ReadLayout(reader, golden.shape.head_dim);
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
  for (std::vector<float>* values : {&golden.k_values, &golden.v_values}) {
    values->resize(golden.shape.row_values() * static_cast<size_t>(golden.tokens));
    reader.Copy(values->data(), values->size() * sizeof(float));
  }
  EXPECT_TRUE(reader.at_end()) << path;
  if (golden.codec == Codec::kPackKv) golden.packkv = PackKvOptionsOf(golden);
  return golden;
}

// The committed files of one version of the format, in order of their names.
inline std::vector<std::filesystem::path> GoldenFiles(int version) {
  std::vector<std::filesystem::path> paths;
  const std::string folder = "tests/golden/vectors/v" + std::to_string(version);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".bin") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_GOLDEN_CASE_H_
