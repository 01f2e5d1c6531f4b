// decode_run.cuh in the lanes of a warp against what the CPU decodes.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "gpu/scalar.h"
#include "gtest/gtest.h"
#include "tests/gpu/packkv/aligned_bytes.h"
#include "tests/gpu/packkv/device_code.h"
#include "tests/gpu/packkv/encoded_segment.h"

namespace kvdepot::packkv {
namespace {

// What the output has where no token of the run goes.
constexpr int kUntouched = 0x5C;

std::vector<float> RandomValues(size_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

// All of the run's tokens, row `target` of the output first; [row][kv_head][channel].
template <int kHeadDim, DType kTo>
void ExpectDecoded(const LayerShape& shape, const EncodedSegment& segment, int first, int count,
                   unsigned seed) {
  const size_t target = seed % 3;
  const size_t value_bytes = DTypeBytes(kTo);
  const size_t row_bytes = shape.row_values() * value_bytes;
  const size_t rows = target + static_cast<size_t>(count) + 1;
  const AlignedBytes outputs[2] = {AlignedBytes(rows * row_bytes, kUntouched),
                                   AlignedBytes(rows * row_bytes, kUntouched)};
  DecodeRun job;
  job.run = {TokenRun::Form::kPackKv, segment.data(), segment.tokens(), first, count};
  job.target = target;
  DecodeBatch batch;
  batch.kv_heads = shape.kv_heads;
  batch.head_dim = shape.head_dim;
  batch.runs = &job;
  batch.run_count = 1;
  batch.to = kTo;
  batch.k = outputs[0].data();
  batch.v = outputs[1].data();
  const auto shared = std::make_unique<DecodeShared<kHeadDim, 1>>();
  std::memset(shared.get(), 0x7B, sizeof(*shared));
  const int first_block = first / kBlockTokens;
  const int block_end = (first + count + kBlockTokens - 1) / kBlockTokens;
  for (int tensor = 0; tensor < 2 * shape.kv_heads; ++tensor) {
    warp::Run(seed, [&](int) {
      DecodeRunBlocks<kHeadDim, 1, kTo>(batch, job, tensor, first_block, block_end, *shared);
    });
  }
  for (const bool is_key : {true, false}) {
    const std::vector<float>& values = is_key ? segment.k() : segment.v();
    const AlignedBytes& output = outputs[is_key ? 0 : 1];
    const AlignedBytes expected(output.size(), kUntouched);
    for (size_t i = 0; i < static_cast<size_t>(count) * shape.row_values(); ++i) {
      StoreScalar(values[static_cast<size_t>(first) * shape.row_values() + i], kTo,
                  expected.data() + target * row_bytes + i * value_bytes);
    }
    for (size_t at = 0; at < output.size(); at += value_bytes) {
      ASSERT_EQ(std::memcmp(output.data() + at, expected.data() + at, value_bytes), 0)
          << (is_key ? "K" : "V") << ", row " << at / row_bytes << ", value "
          << at % row_bytes / value_bytes;
    }
  }
}

template <int kHeadDim>
void ExpectDecodedToAllTypes(unsigned seed) {
  std::mt19937 random(seed);
  const int kv_heads = 1 + static_cast<int>(random() % 3);
  const LayerShape shape{kv_heads, kv_heads, kHeadDim, 0, 0};
  Options options;
  options.k_relative_scale = std::exp(-0.1f * static_cast<float>(random() % 26));
  options.v_relative_scale = std::exp(-0.1f * static_cast<float>(random() % 26));
  options.repacking = seed % 2 == 0 ? Repacking::kNone : Repacking::kMedian;
  const int tokens = kBlockTokens * (1 + static_cast<int>(random() % 3));
  const size_t values = static_cast<size_t>(tokens) * shape.row_values();
  const std::vector<float> k = RandomValues(values, random);
  const EncodedSegment segment(shape, options, k, RandomValues(values, random));
  ExpectDecoded<kHeadDim, DType::kFp32>(shape, segment, 0, tokens, seed);
  const int first = static_cast<int>(random() % static_cast<unsigned>(tokens));
  const int count = 1 + static_cast<int>(random() % static_cast<unsigned>(tokens - first));
  ExpectDecoded<kHeadDim, DType::kFp32>(shape, segment, first, count, seed);
  ExpectDecoded<kHeadDim, DType::kBf16>(shape, segment, first, count, seed);
  ExpectDecoded<kHeadDim, DType::kFp16>(shape, segment, first, count, seed);
}

TEST(PackKvDecodeRunWarp, ValuesAreTheCpus) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectDecodedToAllTypes<64>(seed);
    ExpectDecodedToAllTypes<128>(seed);
  }
}

}  // namespace
}  // namespace kvdepot::packkv
