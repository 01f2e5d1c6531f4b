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

// Codes of the rounds of some passes, as lanes hold them.
template <int kHeadDim, int kPasses>
struct Passes {
  explicit Passes(std::mt19937& random) {
    for (auto& lane : of) {
      for (Nibbles& nibbles : lane) {
        for (auto& channel : nibbles) {
          for (uint32_t& word : channel) word = random() % 8 == 0 ? 0xFFFFFFFFu : random();
        }
      }
    }
  }
  int64_t Code(int round, int channel, int token) const {
    constexpr int kAtOnce = kRoundsAtOnce<kHeadDim>;
    const int lane = round % kAtOnce * kRoundLanes<kHeadDim> + channel / kLaneChannels;
    return of[lane][round / kAtOnce][channel % kLaneChannels][token / 8] >> (4 * (token % 8)) & 15u;
  }

  Nibbles of[warp::kLanes][kPasses];
};

template <int kHeadDim>
void ExpectKeySums(unsigned seed) {
  std::mt19937 random(seed);
  constexpr int kStride = kRowStride<kHeadDim>;
  const Passes<kHeadDim, 1> codes(random);
  const AlignedBytes q_bytes(kProductRows * kStride * sizeof(float));
  float* const q = reinterpret_cast<float*>(q_bytes.data());
  const int most = static_cast<int>(kQueryMax);
  for (int i = 0; i < kProductRows * kStride; ++i) {
    const int ends[] = {most, -most, 0, 127, -128, 128};
    const int value =
        random() % 4 == 0
            ? ends[random() % 6]
            : static_cast<int>(random() % (2u * static_cast<unsigned>(most) + 1)) - most;
    q[i] = static_cast<float>(value);
  }
  const AlignedBytes exchange(kExchangeBytes);
  KeySums<kHeadDim> sums[warp::kLanes];
  warp::Run(seed, [&](int lane) {
    KeyOperand<kHeadDim> queries;
    queries.Make(q, kStride, lane);
    sums[lane].Make(codes.of[lane][0], queries, exchange.data(), lane);
  });
  for (int round = 0; round < kRoundsAtOnce<kHeadDim>; ++round) {
    for (int token = 0; token < kPackTokens; ++token) {
      for (int row = 0; row < kProductRows; ++row) {
        int64_t expected = 0;
        for (int c = 0; c < kHeadDim; ++c)
          expected += codes.Code(round, c, token) * static_cast<int64_t>(q[row * kStride + c]);
        const int32_t(&of)[2] = sums[4 * (token / 2) + row].of[round];
        ASSERT_EQ(of[token % 2], token % 2 == 0 ? expected : 16 * expected)
            << "round " << round << ", token " << token << ", row " << row;
      }
    }
  }
}

TEST(PackKvProductsWarp, KeySumsAreExact) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectKeySums<64>(seed);
    ExpectKeySums<128>(seed);
  }
}

template <int kHeadDim>
void ExpectValueSums(unsigned seed) {
  std::mt19937 random(seed);
  // So few that both parts of a sum are exact in fp32.
  constexpr int kAdds = 3;
  constexpr int kPasses = 2 / kRoundsAtOnce<kHeadDim>;
  std::vector<Passes<kHeadDim, kPasses>> codes;
  // [add][round][token][row].
  static float weights[kAdds][2][kPackTokens][kProductRows];
  for (int add = 0; add < kAdds; ++add) {
    codes.emplace_back(random);
    for (auto& round : weights[add]) {
      for (auto& token : round) {
        for (float& weight : token) {
          const float ends[] = {0, 255, 256, kWeightMax};
          weight =
              random() % 4 == 0 ? ends[random() % 4] : static_cast<float>(random() % 262140) / 4;
        }
      }
    }
  }
  const AlignedBytes exchange(kPasses * kExchangeBytes);
  static float sums[kProductRows][kHeadDim];
  int visits = 0;
  warp::Run(seed, [&](int lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    ValueSums<kHeadDim> values;
    values.Clear();
    for (int add = 0; add < kAdds; ++add) {
      uint32_t operand[2];
      for (int r = 0; r < 2; ++r)
        operand[r] = ValueOperand(weights[add][r][2 * g][t] + kWeightBias,
                                  weights[add][r][2 * g + 1][t] + kWeightBias);
      values.Add(codes[static_cast<size_t>(add)].of[lane], operand, exchange.data(), lane);
      __syncwarp();
    }
    values.ForEach(lane, [&](int channel, float sum) {
      sums[t][channel] = sum;
      ++visits;
    });
  });
  EXPECT_EQ(visits, kProductRows * kHeadDim);
  for (int row = 0; row < kProductRows; ++row) {
    for (int c = 0; c < kHeadDim; ++c) {
      int64_t expected = 0;
      for (int add = 0; add < kAdds; ++add) {
        for (int r = 0; r < 2; ++r) {
          for (int t = 0; t < kPackTokens; ++t) {
            expected += codes[static_cast<size_t>(add)].Code(r, c, t) *
                        static_cast<int64_t>(std::nearbyint(weights[add][r][t][row]));
          }
        }
      }
      ASSERT_EQ(sums[row][c], static_cast<float>(expected)) << "row " << row << ", channel " << c;
    }
  }
}

TEST(PackKvProductsWarp, ValueSumsAreExact) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ExpectValueSums<64>(seed);
    ExpectValueSums<128>(seed);
  }
}

}  // namespace
}  // namespace kvdepot::packkv
