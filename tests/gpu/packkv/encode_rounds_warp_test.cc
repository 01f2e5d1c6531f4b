// encode_rounds_warp.cuh in the lanes of a warp against round.h.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gpu/packkv/round.h"
#include "gtest/gtest.h"
#include "tests/gpu/packkv/aligned_bytes.h"
// Before the code under test, in the place of gpu/cuda_ptx.cuh.
#include "tests/gpu/warp/ptx.h"
// clang-format off
#include "gpu/packkv/encode_rounds_warp.cuh"
// clang-format on

namespace kvdepot::packkv {
namespace {

// Of a tile, [token][channel]. Every channel has bounds of its own, at most `width_max` bits apart.
AlignedBytes RandomTile(int head_dim, int code_bits, int width_max, std::mt19937& random) {
  const size_t channels = static_cast<size_t>(head_dim);
  AlignedBytes tile(kBlockTokens * channels);
  const unsigned values = 1u << code_bits;
  for (size_t c = 0; c < channels; ++c) {
    const unsigned width = random() % static_cast<unsigned>(width_max + 1);
    const unsigned least = random() % (values - (1u << width) + 1);
    for (size_t at = c; at < tile.size(); at += channels)
      tile.data()[at] = static_cast<std::byte>(least + random() % (1u << width));
  }
  return tile;
}

std::vector<std::byte> ExpectedRound(const RoundShape& shape, const AlignedBytes& tile,
                                     const uint8_t* order) {
  const size_t channels = static_cast<size_t>(shape.head_dim);
  std::vector<uint8_t> codes(shape.code_count());
  for (size_t t = 0; t < static_cast<size_t>(shape.pack_tokens); ++t)
    std::memcpy(&codes[t * channels], tile.data() + order[t] * channels, channels);
  std::vector<std::byte> bytes;
  AppendRound(shape, codes, &bytes);
  return bytes;
}

// Of tokens from all over a tile of random codes.
template <int kPackTokens, int kHeadDim>
void ExpectRound(int code_bits, int width_max, unsigned seed) {
  using R = PackedRound<kPackTokens, kHeadDim>;
  SCOPED_TRACE(testing::Message() << "pack_tokens " << kPackTokens);
  std::mt19937 random(seed);
  const AlignedBytes tile = RandomTile(kHeadDim, code_bits, width_max, random);
  uint8_t order[kBlockTokens];
  std::iota(std::begin(order), std::end(order), uint8_t{0});
  std::shuffle(std::begin(order), std::end(order), random);
  const std::vector<std::byte> expected =
      ExpectedRound({kPackTokens, kHeadDim, code_bits}, tile, order);
  ASSERT_LE(expected.size(), R::kUnitsMax * kUnitBytes);

  const size_t header_bytes = RoundHeaderBytes(kHeadDim, code_bits);
  const AlignedBytes built(R::kUnitsMax * kUnitBytes, 0);
  auto* const words = reinterpret_cast<uint32_t*>(built.data());
  uint32_t units[warp::kLanes];
  warp::Run(seed, [&](int lane) {
    const auto loaded = LoadRound<R>(reinterpret_cast<const uint8_t*>(tile.data()), order);
    units[lane] = MeasureParts(loaded);
    PutHeader(loaded, code_bits, words);
    PutParts(loaded, words + header_bytes / sizeof(uint32_t));
  });
  for (const uint32_t of_lane : units)
    ASSERT_EQ(header_bytes + of_lane * kUnitBytes, expected.size());
  const auto wrong = std::mismatch(expected.begin(), expected.end(), built.data()).first;
  ASSERT_EQ(wrong - expected.begin(), static_cast<ptrdiff_t>(expected.size()));
  // Nothing is written behind it.
  ASSERT_TRUE(std::all_of(built.data() + expected.size(), built.data() + built.size(),
                          [](std::byte byte) { return byte == std::byte{0}; }));
}

template <int kHeadDim>
void ExpectRoundsOfAllPacks(int code_bits, int width_max, unsigned seed) {
  SCOPED_TRACE(testing::Message() << "head_dim " << kHeadDim << ", " << code_bits << " bits, up to "
                                  << width_max << " a channel, seed " << seed);
  ExpectRound<4, kHeadDim>(code_bits, width_max, seed);
  ExpectRound<8, kHeadDim>(code_bits, width_max, seed);
  ExpectRound<16, kHeadDim>(code_bits, width_max, seed);
}

TEST(PackKvEncodeRoundsWarp, LanesWriteTheBytesOfTheCpu) {
  for (int code_bits = 0; code_bits <= 8; ++code_bits) {
    for (int width_max = 0; width_max <= code_bits; ++width_max) {
      const unsigned seed = static_cast<unsigned>(10 * code_bits + width_max);
      ExpectRoundsOfAllPacks<64>(code_bits, width_max, seed);
      ExpectRoundsOfAllPacks<128>(code_bits, width_max, seed);
      ExpectRoundsOfAllPacks<256>(code_bits, width_max, seed);
    }
  }
}

}  // namespace
}  // namespace kvdepot::packkv
