#include "gpu/packkv/body.h"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvdepot::packkv {
namespace {

// Random values of a layer as exact extents of fp32.
struct Layer {
  Layer(int kv_heads, int head_dim, int blocks, unsigned seed)
      : shape{kv_heads, kv_heads, head_dim, 0, 0}, extents(static_cast<size_t>(blocks)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::vector<float>& extent : extents) {
      extent.resize(2 * kBlockTokens * shape.row_values());
      for (float& value : extent) value = normal(random);
      blocks_.push_back(reinterpret_cast<const std::byte*>(extent.data()));
    }
  }
  SealBlocks source() const { return {shape, DType::kFp32, blocks_}; }
  absl::StatusOr<BodyView> View(const std::vector<std::byte>& body) const {
    return BodyView::Validate(body, shape.kv_heads, shape.head_dim,
                              static_cast<int>(extents.size()));
  }
  // K or V of a token, as it was.
  const float* row(int head, Tensor tensor, int token) const {
    const size_t tile = 2 * static_cast<size_t>(head) + (tensor == Tensor::kValue ? 1 : 0);
    return &extents[static_cast<size_t>(token / kBlockTokens)]
                   [(tile * kBlockTokens + static_cast<size_t>(token % kBlockTokens)) *
                    static_cast<size_t>(shape.head_dim)];
  }

  LayerShape shape;
  std::vector<std::vector<float>> extents;

 private:
  std::vector<const std::byte*> blocks_;
};

Options OptionsOf(int pack_tokens, Repacking repacking) {
  Options options;
  options.pack_tokens = pack_tokens;
  options.repacking = repacking;
  return options;
}

TEST(PackKvBody, ValuesComeBackWithinHalfAStepAndInTokenOrder) {
  const Layer layer(2, 64, 3, 1);
  for (const int pack_tokens : {4, 8, 16}) {
    for (const Repacking repacking : {Repacking::kNone, Repacking::kMedian, Repacking::kGreedy}) {
      const Options options = OptionsOf(pack_tokens, repacking);
      const auto body = EncodeBody(layer.source(), options);
      ASSERT_TRUE(body.has_value());
      EXPECT_LE(body->size(), BodyBytesMax(layer.shape, options, 3));
      const auto view = layer.View(*body);
      ASSERT_TRUE(view.ok()) << view.status();
      std::vector<float> values(192 * 64);
      for (int head = 0; head < 2; ++head) {
        for (const Tensor tensor : {Tensor::kKey, Tensor::kValue}) {
          view->Decode(head, tensor, 0, absl::MakeSpan(values));
          // A token's values lie within about 7 of each other.
          const float half_step = tensor == Tensor::kKey ? 0.45f : 0.9f;
          for (int token = 0; token < 192; ++token) {
            for (size_t c = 0; c < 64; ++c) {
              ASSERT_NEAR(values[static_cast<size_t>(token) * 64 + c],
                          layer.row(head, tensor, token)[c], half_step)
                  << token << ", channel " << c;
            }
          }
        }
      }
    }
  }
}

// A channel's bias costs nothing, and its weight makes it finer.
TEST(PackKvBody, NormalisedValuesKeepChannelsApart) {
  Layer layer(2, 64, 2, 8);
  for (std::vector<float>& extent : layer.extents) {
    for (size_t i = 0; i < extent.size(); i += 64) extent[i] += 500;
  }
  Options options = DefaultOptions(true);
  options.repacking = Repacking::kGreedy;
  std::vector<float> weights(128, 1.0f);
  weights[1] = 10000;
  double errors[2] = {};
  for (const bool weighted : {false, true}) {
    const auto body =
        EncodeBody(layer.source(), options,
                   weighted ? absl::MakeConstSpan(weights) : absl::Span<const float>());
    ASSERT_TRUE(body.has_value());
    EXPECT_LE(body->size(), BodyBytesMax(layer.shape, options, 2));
    const auto view = layer.View(*body);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_TRUE(view->is_normalized());
    std::vector<float> values(128 * 64);
    view->Decode(0, Tensor::kKey, 0, absl::MakeSpan(values));
    for (int token = 0; token < 128; ++token) {
      const float* const row = layer.row(0, Tensor::kKey, token);
      EXPECT_NEAR(values[static_cast<size_t>(token) * 64], row[0], weighted ? 5.0f : 1.0f);
      errors[weighted] += std::fabs(values[static_cast<size_t>(token) * 64 + 1] - row[1]);
    }
  }
  EXPECT_LT(errors[true], errors[false] / 2);
}

// Values that squares underflow, or that are far from all others, still fit their codes.
TEST(PackKvBody, NormalisedExtremesStayWithinTheLargestSize) {
  Layer layer(1, 256, 1, 9);
  for (size_t i = 0; i < layer.extents[0].size(); ++i) {
    const size_t token = i / 256 % kBlockTokens;
    float& value = layer.extents[0][i];
    if (token % 4 == 1) value *= 1e-30f;
    if (token % 4 == 2) value = i % 256 == token ? 1e6f : 0.0f;
    if (token % 4 == 3) value = 0;
  }
  for (const float scale : {0.1f, 0.8f, 2.0f}) {
    Options options = DefaultOptions(true);
    options.k_relative_scale = options.v_relative_scale = scale;
    const auto body = EncodeBody(layer.source(), options);
    ASSERT_TRUE(body.has_value());
    EXPECT_LE(body->size(), BodyBytesMax(layer.shape, options, 1));
    EXPECT_TRUE(layer.View(*body).ok());
  }
}

TEST(PackKvBody, AnyRangeDecodesToTheSameBits) {
  const Layer layer(1, 128, 2, 2);
  const auto body = EncodeBody(layer.source(), OptionsOf(16, Repacking::kMedian));
  const auto view = layer.View(*body);
  ASSERT_TRUE(view.ok());
  std::vector<float> all(128 * 128);
  view->Decode(0, Tensor::kKey, 0, absl::MakeSpan(all));
  for (const auto& [first, count] : {std::pair{0, 1}, {63, 2}, {64, 64}, {5, 100}, {127, 1}}) {
    std::vector<float> part(static_cast<size_t>(count) * 128);
    view->Decode(0, Tensor::kKey, first, absl::MakeSpan(part));
    EXPECT_EQ(std::memcmp(part.data(), &all[static_cast<size_t>(first) * 128],
                          part.size() * sizeof(float)),
              0)
        << first;
  }
}

TEST(PackKvBody, ConstantTokensAndZerosAreKept) {
  Layer layer(1, 64, 1, 3);
  for (size_t i = 0; i < layer.extents[0].size(); ++i) {
    const size_t token = i / 64 % kBlockTokens;
    layer.extents[0][i] = token % 2 == 0 ? 0.0f : -1000.0f;
  }
  const auto body = EncodeBody(layer.source(), OptionsOf(16, Repacking::kGreedy));
  const auto view = layer.View(*body);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->header().k_bits, 0);
  std::vector<float> values(64 * 64);
  view->Decode(0, Tensor::kValue, 0, absl::MakeSpan(values));
  for (size_t token = 0; token < 64; ++token) {
    EXPECT_NEAR(values[token * 64 + 5], token % 2 == 0 ? 0.0f : -1000.0f, 0.02f);
  }
}

TEST(PackKvBody, ValuesOutOfRangeAreNotEncoded) {
  Layer layer(1, 64, 1, 4);
  layer.extents[0][77] = 3e38f;
  EXPECT_FALSE(EncodeBody(layer.source(), Options()).has_value());
}

// One byte changed in any place: refused, or still a body that can be read to its end.
TEST(PackKvBody, ChangedBytesAreRefusedOrHarmless) {
  const Layer layer(2, 64, 2, 5);
  const auto body = EncodeBody(layer.source(), OptionsOf(8, Repacking::kMedian));
  std::mt19937 random(6);
  std::vector<float> values(128 * 64);
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    std::vector<std::byte> changed = *body;
    // The header, tables and directory more often than their length would have it.
    const size_t most = i % 2 == 0 ? 1500 : changed.size();
    changed[random() % most] ^= static_cast<std::byte>(1 + random() % 255);
    if (i % 50 == 0) changed.resize(random() % changed.size());
    const auto view = layer.View(changed);
    refused += !view.ok();
    if (!view.ok()) {
      EXPECT_EQ(view.status().code(), absl::StatusCode::kDataLoss);
      continue;
    }
    for (int head = 0; head < 2; ++head)
      view->Decode(head, Tensor::kKey, 0, absl::MakeSpan(values));
  }
  EXPECT_GT(refused, 500);
}

TEST(PackKvBody, WhatIsDamagedIsNamed) {
  const Layer layer(1, 64, 1, 7);
  const std::vector<std::byte> body = *EncodeBody(layer.source(), OptionsOf(16, Repacking::kNone));
  const auto error = [&](size_t at, uint8_t value) {
    std::vector<std::byte> changed = body;
    changed[at] = std::byte{value};
    return layer.View(changed).status();
  };
  EXPECT_EQ(error(8, 5), absl::DataLossError("segment pack_tokens is 5, expected 4, 8 or 16"));
  EXPECT_EQ(error(10, 9), absl::DataLossError("segment k_bits is 9, expected at most 8"));
  EXPECT_EQ(error(12, 2),
            absl::DataLossError("segment form is 2, expected 0 (tokens) or 1 (normalized)"));
  // Place 3 says token 2, which place 2 has; place 3 says a token that is none.
  const size_t order = sizeof(BodyHeader) + offsetof(TokenTable, order);
  EXPECT_EQ(error(order + 3, 2),
            absl::DataLossError("segment order of block 0 is 2, expected each of 0..63 once"));
  EXPECT_EQ(error(order + 3, 64),
            absl::DataLossError("segment order of block 0 is 64, expected each of 0..63 once"));
  const size_t entry = sizeof(BodyHeader) + sizeof(TokenTable);
  EXPECT_EQ(error(entry, 0).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(error(entry + 8, 255).code(), absl::StatusCode::kDataLoss);
}

TEST(PackKvOptions, WhatIsWrongIsNamed) {
  Options options;
  EXPECT_TRUE(Validate(options).ok());
  options.v_relative_scale = 0.001f;
  EXPECT_EQ(Validate(options),
            absl::InvalidArgumentError("v_relative_scale: 0.001, must be 0.004..1"));
  options.v_relative_scale = std::nanf("");
  EXPECT_FALSE(Validate(options).ok());
  options = OptionsOf(5, Repacking::kNone);
  EXPECT_EQ(Validate(options), absl::InvalidArgumentError("pack_tokens: 5, must be 4, 8 or 16"));
  options = OptionsOf(4, static_cast<Repacking>(9));
  EXPECT_EQ(Validate(options), absl::InvalidArgumentError("repacking: 9, must be 1..3"));
}

}  // namespace
}  // namespace kvdepot::packkv
