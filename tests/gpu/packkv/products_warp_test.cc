// products.cuh in the lanes of a warp against sums of integers.
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/gpu/packkv/aligned_bytes.h"
#include "tests/gpu/packkv/device_code.h"

namespace kvdepot::packkv {
namespace {

// Of channels and packs: codes less minima, and minima, all of which may be 15.
template <int kHeadDim>
class Packs {
 public:
  explicit Packs(std::mt19937& random) {
    for (auto& pack : codes_) {
      for (PackCodes& codes : pack) codes = {Word(random), Word(random)};
    }
    for (auto& pack : minima_) {
      for (uint32_t& eight : pack) eight = Word(random);
    }
  }
  const PackCodes& codes(int pack, int channel) const { return codes_[pack][channel]; }
  // Of eight channels, `channel` among them.
  uint32_t minima(int pack, int channel) const { return minima_[pack][channel / 8]; }
  int64_t Code(int pack, int channel, int token) const {
    const PackCodes& words = codes_[pack][channel];
    return (minima(pack, channel) >> (channel % 8 * 4) & 15u) +
           ((token % 2 == 0 ? words.even : words.odd) >> (token / 2 * 4) & 15u);
  }

 private:
  static uint32_t Word(std::mt19937& random) {
    return random() % 8 == 0 ? 0xFFFFFFFFu : static_cast<uint32_t>(random());
  }

  PackCodes codes_[8][kHeadDim];
  uint32_t minima_[8][kHeadDim / 8];
};

template <int kHeadDim>
void ExpectKeySums(unsigned seed, bool rows_are_same) {
  std::mt19937 random(seed);
  constexpr int kStride = kRowStride<kHeadDim>;
  const Packs<kHeadDim> packs(random);
  const AlignedBytes q_bytes(kProductRows * kStride * sizeof(float));
  float* const q = reinterpret_cast<float*>(q_bytes.data());
  const int most = static_cast<int>(kQueryMax);
  for (int i = 0; i < kProductRows * kStride; ++i) {
    const int ends[] = {most, -most, 0, 127, -128, 128};
    const int value =
        random() % 4 == 0
            ? ends[random() % 6]
            : static_cast<int>(random() % (2u * static_cast<unsigned>(most) + 1)) - most;
    q[i] = rows_are_same && i >= kStride ? q[i - kStride] : static_cast<float>(value);
  }
  const std::vector<float> integers(q, q + kProductRows * kStride);
  auto& queries = *reinterpret_cast<KeyOperand<kHeadDim>*>(q);
  int32_t sums[warp::kLanes][kPackTokens];
  int32_t own_sums[warp::kLanes][4];
  warp::Run(seed, [&](int lane) {
    queries.Make(q, kStride, lane);
    KeySums<kHeadDim> keys;
    keys.Clear();
    for (int group = 0; group < KeyOperand<kHeadDim>::kGroups; ++group) {
      const int channel = kHeadDim / 4 * (lane % 4) + 8 * group;
      PackCodes codes[kNibbleChannels];
      for (int c = 0; c < kNibbleChannels; ++c) codes[c] = packs.codes(lane / 4, channel + c);
      keys.Add(codes, packs.minima(lane / 4, channel), queries.words[group][lane]);
    }
    keys.Take(sums[lane]);
    keys.TakeOfOneRow(lane % 4, own_sums[lane]);
  });
  for (int lane = 0; lane < warp::kLanes; ++lane) {
    for (int token = 0; token < kPackTokens; ++token) {
      int64_t expected = 0;
      for (int c = 0; c < kHeadDim; ++c) {
        expected += packs.Code(lane / 4, c, token) *
                    static_cast<int64_t>(integers[static_cast<size_t>(lane % 4 * kStride + c)]);
      }
      ASSERT_EQ(sums[lane][token], expected)
          << "pack " << lane / 4 << ", row " << lane % 4 << ", token " << token;
      if (!rows_are_same || token / 4 != lane % 4) continue;
      ASSERT_EQ(own_sums[lane][token % 4], expected) << "pack " << lane / 4 << ", token " << token;
    }
  }
}

TEST(PackKvProductsWarp, KeySumsAreExact) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    for (const bool rows_are_same : {false, true}) {
      ExpectKeySums<64>(seed, rows_are_same);
      ExpectKeySums<128>(seed, rows_are_same);
    }
  }
}

// kRows 1: those of one row alone are brought.
template <int kHeadDim, int kRows>
void ExpectValueSums(unsigned seed) {
  constexpr int kRowPairs = (kRows + 1) / 2;
  std::mt19937 random(seed);
  constexpr int kSteps = 3;
  std::vector<Packs<kHeadDim>> packs;
  static float weights[kSteps][8][kProductRows][kPackTokens];
  for (int step = 0; step < kSteps; ++step) {
    packs.emplace_back(random);
    for (auto& pack : weights[step]) {
      for (auto& row : pack) {
        for (float& weight : row) {
          const float ends[] = {0, 255, 256, 65535, kWeightMax};
          weight = random() % 4 == 0 ? ends[random() % 5]
                                     : static_cast<float>(random() % (1u << 24)) / 4;
        }
      }
    }
  }
  const AlignedBytes operand(sizeof(ValueOperand<kRowPairs>));
  auto& made = *reinterpret_cast<ValueOperand<kRowPairs>*>(operand.data());
  static float sums[kProductRows][kHeadDim];
  int visits = 0;
  warp::Run(seed, [&](int lane) {
    ValueSums<kHeadDim, kRowPairs> values;
    values.Clear();
    for (int step = 0; step < kSteps; ++step) {
      const auto& of = packs[static_cast<size_t>(step)];
      if (kRows == 1) {
        float biased[4];
        for (int i = 0; i < 4; ++i)
          biased[i] = weights[step][lane / 4][0][lane % 4 * 4 + i] + kWeightBias;
        made.MakeOfOneRow(biased, lane);
      } else {
        float biased[kPackTokens];
        for (int i = 0; i < kPackTokens; ++i)
          biased[i] = weights[step][lane / 4][lane % 4][i] + kWeightBias;
        made.Make(biased, lane);
      }
      for (int quad = 0; quad < ValueSums<kHeadDim, kRowPairs>::kQuads; ++quad) {
        const int channel = kHeadDim / 8 * (lane / 4) + kQuadChannels * quad;
        PackCodes codes[2][kQuadChannels];
        uint32_t minima[2];
        for (int half = 0; half < 2; ++half) {
          const int pack = 4 * half + lane % 4;
          for (int c = 0; c < kQuadChannels; ++c) codes[half][c] = of.codes(pack, channel + c);
          minima[half] = of.minima(pack, channel) >> (16 * (quad % 2));
        }
        values.Add(quad, codes[0], codes[1], minima[0], minima[1], made, lane);
      }
      __syncwarp();
    }
    values.ForEach(lane, [&](int row, int channel, float sum) {
      sums[row][channel] = sum;
      ++visits;
    });
  });
  EXPECT_EQ(visits, 2 * kRowPairs * kHeadDim);
  for (int row = 0; row < kRows; ++row) {
    for (int c = 0; c < kHeadDim; ++c) {
      int64_t expected = 0;
      for (int step = 0; step < kSteps; ++step) {
        for (int pack = 0; pack < 8; ++pack) {
          for (int t = 0; t < kPackTokens; ++t) {
            expected += packs[static_cast<size_t>(step)].Code(pack, c, t) *
                        static_cast<int64_t>(std::nearbyint(weights[step][pack][row][t]));
          }
        }
      }
      // Bytes' sums are exact, what they make together is rounded a few times.
      ASSERT_NEAR(sums[row][c], static_cast<double>(expected), static_cast<double>(expected) * 3e-7)
          << "row " << row << ", channel " << c;
    }
  }
}

TEST(PackKvProductsWarp, ValueSumsAreExactButForTheLastRounding) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectValueSums<64, 1>(seed);
    ExpectValueSums<128, 1>(seed);
    ExpectValueSums<64, kProductRows>(seed);
    ExpectValueSums<128, kProductRows>(seed);
  }
}

}  // namespace
}  // namespace kvdepot::packkv
