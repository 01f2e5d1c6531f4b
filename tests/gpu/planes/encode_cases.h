// Segments to encode, drawn so that every shape, pattern and odd kind of value comes up, and what
// the CPU makes of them.
#ifndef KVDEPOT_TESTS_GPU_PLANES_ENCODE_CASES_H_
#define KVDEPOT_TESTS_GPU_PLANES_ENCODE_CASES_H_

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "gpu/calibration.h"
#include "gpu/planes/encode_cpu.h"
#include "gpu/planes/format.h"
#include "gpu/segment_view.h"
#include "gpu/shape.h"
#include "tests/gpu/stored_layer.h"

namespace kvdepot::planes {

enum class Values {
  kNormal,
  kSpreadChannels,    // standard deviations and means from 1e-3 to 1e3
  kSpreadTokens,      // token norms from 2^-40 to 1
  kOutliers,          // one value in 500 is a thousand times larger
  kHugeOutliers,      // likewise, near the end of the type's range
  kConstantChannels,  // most channels the same in every token
  kOneToken,          // zero but for one token
  kZeros,             // of both signs
  kGrid,              // multiples of 1/4: ties in quantising
  kEqualTokens,       // all tokens alike up to a power of two: ties in rounding their scales
  kTiny,              // subnormal stored scales, or too small for any
  kDenormals,         // of the type
  kLarge,             // centres or scales leave fp16
  kVeryLarge,         // sums overflow
  kCount,
};

struct EncodeCase {
  LayerShape shape;
  DType dtype = DType::kBf16;
  int block_count = 0;
  LayerCalibration calibration;
  // Exact extents of 64 tokens.
  std::vector<std::vector<std::byte>> blocks;
  std::string name;
};

inline float TypeMax(DType dtype) {
  return dtype == DType::kFp16 ? 65504.0f : dtype == DType::kBf16 ? 3.38e38f : 3.4e38f;
}

// Values of one tensor, [token][channel].
inline std::vector<float> DrawValues(Values kind, DType dtype, int tokens, int head_dim,
                                     std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform;
  std::vector<float> deviation(static_cast<size_t>(head_dim), 1.0f);
  std::vector<float> mean(static_cast<size_t>(head_dim), 0.0f);
  for (int c = 0; c < head_dim; ++c) {
    if (kind == Values::kSpreadChannels) {
      deviation[c] = std::exp(3 * normal(random));
      mean[c] = normal(random) * std::exp(2 * normal(random));
    } else if (kind == Values::kConstantChannels) {
      deviation[c] = random() % 4 == 0 ? 1.0f : 0.0f;
      mean[c] = random() % 2 == 0 ? normal(random) : static_cast<float>(random() % 8);
    } else if (kind != Values::kZeros && random() % 3 == 0) {
      mean[c] = normal(random);
    }
  }
  const float type_max = TypeMax(dtype);
  const float huge = type_max * uniform(random);
  const float large = kind == Values::kLarge ? std::exp2(10.0f + 10 * uniform(random)) : 1.0f;
  const float tiny = std::exp2(-8.0f - 40 * uniform(random));
  const float denormal = dtype == DType::kFp16 ? 6e-8f : 1e-40f;
  const int only_token = static_cast<int>(random() % static_cast<unsigned>(tokens));
  std::vector<float> equal(static_cast<size_t>(head_dim));
  for (float& value : equal) value = std::round(8 * normal(random)) / 8;

  std::vector<float> values(static_cast<size_t>(tokens * head_dim));
  for (int t = 0; t < tokens; ++t) {
    const float token_scale =
        kind == Values::kSpreadTokens ? std::exp2(-40 * uniform(random)) : 1.0f;
    const float power = std::exp2(static_cast<float>(random() % 6));
    const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
    for (int c = 0; c < head_dim; ++c) {
      float value = (mean[c] + deviation[c] * normal(random)) * token_scale;
      switch (kind) {
        case Values::kOutliers:
          if (random() % 500 == 0) value *= 1000;
          break;
        case Values::kHugeOutliers:
          if (random() % 2000 == 0) value = sign * huge;
          break;
        case Values::kConstantChannels:
          if (deviation[c] == 0) value = mean[c];
          break;
        case Values::kOneToken:
          if (t != only_token) value = 0;
          break;
        case Values::kZeros:
          value = random() % 2 == 0 ? 0.0f : -0.0f;
          break;
        case Values::kGrid:
          value = std::round(4 * value) / 4;
          break;
        case Values::kEqualTokens:
          value = equal[c] * power * sign;
          break;
        case Values::kTiny:
          value *= tiny;
          break;
        case Values::kDenormals:
          value *= denormal;
          break;
        case Values::kLarge:
          value *= large;
          break;
        case Values::kVeryLarge:
          value *= type_max / 16;
          break;
        default:
          break;
      }
      values[static_cast<size_t>(t * head_dim + c)] =
          std::fmin(std::fmax(value, -type_max), type_max);
    }
  }
  return values;
}

// A case of the given geometry; most of its tensors are of `kind`, the rest normal.
inline EncodeCase DrawCase(int kv_heads, int head_dim, DType dtype, int block_count, Values kind,
                           std::mt19937& random) {
  EncodeCase result;
  result.shape = {kv_heads, kv_heads, head_dim, 0, 0};
  result.dtype = dtype;
  result.block_count = block_count;
  result.calibration = RandomCalibration(result.shape, random);
  for (uint8_t& byte : result.calibration.hash_prefix) byte = static_cast<uint8_t>(random());
  const int tokens = block_count * kBlockTokens;
  const size_t tensor_bytes = static_cast<size_t>(kBlockTokens * head_dim) * DTypeBytes(dtype);
  result.blocks.assign(static_cast<size_t>(block_count),
                       std::vector<std::byte>(2 * static_cast<size_t>(kv_heads) * tensor_bytes));
  for (int tensor = 0; tensor < 2 * kv_heads; ++tensor) {
    const Values drawn = random() % 4 == 0 ? Values::kNormal : kind;
    const std::vector<std::byte> bytes =
        ToBytes(DrawValues(drawn, dtype, tokens, head_dim, random), dtype);
    for (size_t block = 0; block < result.blocks.size(); ++block) {
      memcpy(result.blocks[block].data() + static_cast<size_t>(tensor) * tensor_bytes,
             bytes.data() + block * tensor_bytes, tensor_bytes);
    }
  }
  result.name = "heads " + std::to_string(kv_heads) + ", head_dim " + std::to_string(head_dim) +
                ", dtype " + std::to_string(static_cast<int>(dtype)) + ", blocks " +
                std::to_string(block_count) + ", values " + std::to_string(static_cast<int>(kind));
  return result;
}

// The segment as the CPU encodes it; empty if the values leave the range of the format.
inline std::vector<std::byte> EncodeOnCpu(const EncodeCase& input) {
  std::vector<const std::byte*> blocks;
  for (const auto& block : input.blocks) blocks.push_back(block.data());
  const SealBlocks source{input.shape, input.dtype, blocks};
  const int tokens = input.block_count * kBlockTokens;
  std::vector<std::byte> segment(
      SegmentBytes(input.shape, input.dtype, Codec::kPlanes, &input.calibration, tokens));
  WriteSegmentHeader(input.shape, input.dtype, Codec::kPlanes, &input.calibration, tokens,
                     segment.size(), segment.data());
  const SegmentView view = SegmentView::Of(segment.data());
  for (int tensor = 0; tensor < 2 * input.shape.kv_heads; ++tensor) {
    const int head = tensor / 2;
    const bool is_key = tensor % 2 == 0;
    const HeadLayout& layout = input.calibration.heads[static_cast<size_t>(head)];
    std::byte* part = segment.data() + (view.part(head) - segment.data());
    const size_t table_bytes = TableBytes(input.shape.head_dim);
    TensorSink sink;
    sink.is_key = is_key;
    sink.table = part + (is_key ? 0 : table_bytes);
    sink.records = part + 2 * table_bytes;
    sink.record_bytes = RecordBytes(view.k_pattern(head), view.v_pattern(head));
    sink.planes_offset = kTokenScaleBytes + (is_key ? 0 : GroupBytes(view.k_pattern(head).total()));
    if (!EncodeTensor(TensorBlocksOf(source, head, is_key), is_key ? layout.k : layout.v, sink))
      return {};
  }
  const uint64_t checksum = SegmentChecksum(segment);
  memcpy(segment.data() + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
  return segment;
}

}  // namespace kvdepot::planes

#endif  // KVDEPOT_TESTS_GPU_PLANES_ENCODE_CASES_H_
