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

template <int kHeadDim, int kCodeBits>
void ExpectCodesOfFourRounds(int code_bits, unsigned seed) {
  std::mt19937 random(seed);
  const RoundShape shape{kPackTokens, kHeadDim, code_bits};
  std::vector<std::byte> bytes;
  std::vector<uint8_t> codes[kRounds];
  uint16_t units[kRounds];
  for (int r = 0; r < kRounds; ++r) {
    const size_t begin = bytes.size();
    AppendRound(shape, RandomCodes(shape, random), &bytes);
    units[r] = static_cast<uint16_t>((bytes.size() - begin) / kUnitBytes);
    codes[r].resize(shape.code_count());
    ReadRound(shape, bytes.data() + begin, absl::MakeSpan(codes[r]));
  }
  // Fields are read in whole words.
  const AlignedBytes rounds_bytes(bytes.size() + 16);
  std::copy(bytes.begin(), bytes.end(), rounds_bytes.data());

  constexpr int kPasses = kRounds / kRoundsAtOnce<kHeadDim>;
  Nibbles nibbles[warp::kLanes][kPasses];
  warp::Run(seed, [&](int lane) {
    const RoundFormat<kHeadDim, kCodeBits> format(static_cast<uint32_t>(code_bits), lane);
    const std::byte* at[kRounds];
    FindRounds(rounds_bytes.data(), units, at);
    Round<kHeadDim, kCodeBits> rounds[kPasses];
    BeginRounds(format, at, lane, rounds);
    for (int pass = 0; pass < kPasses; ++pass) rounds[pass].Read(format, nibbles[lane][pass]);
  });
  for (int r = 0; r < kRounds; ++r) {
    for (int c = 0; c < kHeadDim; ++c) {
      const int lane = r % kRoundsAtOnce<kHeadDim> * kRoundLanes<kHeadDim> + c / kLaneChannels;
      const auto& words = nibbles[lane][r / kRoundsAtOnce<kHeadDim>][c % kLaneChannels];
      for (int t = 0; t < kPackTokens; ++t) {
        ASSERT_EQ(words[t / 8] >> (4 * (t % 8)) & 15u,
                  codes[r][static_cast<size_t>(t * kHeadDim + c)])
            << "round " << r << ", channel " << c << ", token " << t;
      }
    }
  }
}

TEST(PackKvRoundWarp, LanesReadTheCodesOfTheirChannels) {
  for (int code_bits = 0; code_bits <= 4; ++code_bits) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(testing::Message() << code_bits << " bits, seed " << seed);
      ExpectCodesOfFourRounds<64, 4>(code_bits, seed);
      ExpectCodesOfFourRounds<128, 4>(code_bits, seed);
      if (code_bits > 3) continue;
      ExpectCodesOfFourRounds<64, 3>(code_bits, seed);
      ExpectCodesOfFourRounds<128, 3>(code_bits, seed);
    }
  }
}

}  // namespace
}  // namespace kvdepot::packkv
