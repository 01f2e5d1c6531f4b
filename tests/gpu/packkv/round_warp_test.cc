// round.cuh in the lanes of a warp against round.h.
#include <algorithm>
#include <random>
#include <vector>

#include "gpu/packkv/round.h"
#include "gtest/gtest.h"
#include "tests/gpu/packkv/aligned_bytes.h"
#include "tests/gpu/packkv/device_code.h"

namespace kvdepot::packkv {
namespace {

// [token][channel], every channel with bounds of its own, so that all widths and minima come.
std::vector<uint8_t> RandomCodes(const RoundShape& shape, std::mt19937& random) {
  std::vector<uint8_t> codes(shape.code_count());
  const size_t channels = static_cast<size_t>(shape.head_dim);
  const unsigned values = 1u << shape.code_bits;
  for (size_t c = 0; c < channels; ++c) {
    const unsigned width = random() % static_cast<unsigned>(shape.code_bits + 1);
    const unsigned least = random() % (values - (1u << width) + 1);
    for (size_t at = c; at < codes.size(); at += channels)
      codes[at] = static_cast<uint8_t>(least + random() % (1u << width));
  }
  return codes;
}

// As many rounds as a warp reads at once, one behind the other.
template <int kHeadDim, int kLanes, int kCodeBits>
void ExpectCodesOfRounds(int code_bits, unsigned seed) {
  constexpr int kCount = 32 / kLanes;
  std::mt19937 random(seed);
  const RoundShape shape{kPackTokens, kHeadDim, code_bits};
  std::vector<std::byte> bytes;
  std::vector<uint8_t> codes[kCount];
  size_t begins[kCount];
  for (int r = 0; r < kCount; ++r) {
    begins[r] = bytes.size();
    AppendRound(shape, RandomCodes(shape, random), &bytes);
    EXPECT_LE(bytes.size() - begins[r], RoundBytesMax(kHeadDim, code_bits));
    codes[r].resize(shape.code_count());
    ReadRound(shape, bytes.data() + begins[r], absl::MakeSpan(codes[r]));
  }
  const AlignedBytes rounds(bytes.size() + kTileSlackBytes);
  std::copy(bytes.begin(), bytes.end(), rounds.data());

  constexpr int kChannels = kHeadDim / kLanes;
  PackCodes read[warp::kLanes][kChannels];
  uint32_t minima[warp::kLanes][kChannels / kNibbleChannels];
  warp::Run(seed, [&](int lane) {
    const RoundFormat<kHeadDim, kLanes> format(static_cast<uint32_t>(code_bits), lane);
    LaneChannels<kHeadDim, kLanes, kCodeBits> channels;
    channels.Begin(format, rounds.data() + begins[kLanes == kKeyLanes ? lane / 4 : lane % 4], lane);
    for (int c = 0; c < kChannels; ++c) {
      if (c % kNibbleChannels == 0) {
        if (c > 0) channels.Skip(kNibbleChannels);
        minima[lane][c / kNibbleChannels] = channels.NextMinima();
      }
      read[lane][c] = channels.Next(c % kNibbleChannels);
    }
  });
  for (int lane = 0; lane < warp::kLanes; ++lane) {
    const int r = kLanes == kKeyLanes ? lane / 4 : lane % 4;
    const int share = kLanes == kKeyLanes ? lane % 4 : lane / 4;
    for (int c = 0; c < kChannels; ++c) {
      const uint32_t least = minima[lane][c / kNibbleChannels] >> (4 * (c % kNibbleChannels)) & 15u;
      for (int t = 0; t < kPackTokens; ++t) {
        const uint32_t word = t % 2 == 0 ? read[lane][c].even : read[lane][c].odd;
        ASSERT_EQ(least + (word >> (t / 2 * 4) & 15u),
                  codes[r][static_cast<size_t>(t * kHeadDim + share * kChannels + c)])
            << "lane " << lane << ", channel " << c << ", token " << t;
      }
    }
  }
}

template <int kHeadDim, int kLanes>
void ExpectCodesOfRounds(unsigned seed) {
  for (int code_bits = 0; code_bits <= 4; ++code_bits) {
    SCOPED_TRACE(testing::Message() << code_bits << " bits, seed " << seed);
    ExpectCodesOfRounds<kHeadDim, kLanes, 4>(code_bits, seed);
    if (code_bits <= 3) ExpectCodesOfRounds<kHeadDim, kLanes, 3>(code_bits, seed);
  }
}

TEST(PackKvRoundWarp, LanesReadTheCodesOfTheirChannels) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    ExpectCodesOfRounds<64, kKeyLanes>(seed);
    ExpectCodesOfRounds<128, kKeyLanes>(seed);
    ExpectCodesOfRounds<64, kValueLanes>(seed);
    ExpectCodesOfRounds<128, kValueLanes>(seed);
  }
}

}  // namespace
}  // namespace kvdepot::packkv
