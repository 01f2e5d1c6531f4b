// Packed codes against the grammar of gpu/FORMAT.md, spelled out bit by bit here.

#include "gpu/planes/pack.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gpu/planes/format.h"
#include "gtest/gtest.h"

namespace kvdepot::planes {
namespace {

struct Codes {
  uint8_t value[kHeadDimMax][kBlockTokens] = {};
};

// Bit `bit` of the nibble s of byte e of word w, as gpu/FORMAT.md places code u of chunk x.
int NibbleBit(int width, int x, int s, int code_bit, int* word) {
  if (width == 3 && x == 3) {
    *word = code_bit;
    return 4 * s;
  }
  *word = width >= 3 ? x : width == 2 ? x / 2 : 0;
  const int lowest = width == 4 ? 0 : width == 3 ? 1 : width == 2 ? (x % 2 == 0 ? 2 : 0) : 3 - x;
  return 4 * s + lowest + code_bit;
}

int CodeFromKeyGroup(int width, int place, int token, const std::byte* group) {
  const int h = place / 16, t = place % 16 / 4, e = place % 4;
  const int x = token / 16, s = token % 16 / 8, g = token % 8;
  int code = 0;
  for (int bit = 0; bit < width; ++bit) {
    int j;
    const int shift = NibbleBit(width, x, s, bit, &j);
    const int f = 2 * j + h;
    const int lane = 4 * g + t;
    const int offset = f < 4 * (width / 2) ? 512 * (f / 4) + 16 * lane + 4 * (f % 4)
                                           : 512 * (width / 2) + 8 * lane + 4 * (f % 2);
    code |= (static_cast<int>(group[offset + e]) >> shift & 1) << bit;
  }
  return code;
}

int CodeFromValueGroup(int width, int place, int token, const std::byte* group) {
  const int tile = place / 16, s = place % 16 / 8, g = place % 8;
  const int x = token / 16, within = token % 16;
  const int e = within / 8 + 2 * (within % 2), t = within % 8 / 2;
  int code = 0;
  for (int bit = 0; bit < width; ++bit) {
    int j;
    const int shift = NibbleBit(width, x, s, bit, &j);
    const int lane = 4 * g + t;
    const int offset =
        width == 3 ? (j < 2 ? 8 * lane + 4 * j : 256 + 4 * lane) : 4 * width * lane + 4 * j;
    code |= (static_cast<int>(group[128 * width * tile + offset + e]) >> shift & 1) << bit;
  }
  return code;
}

class PackTest : public ::testing::TestWithParam<int> {};

TEST_P(PackTest, EveryPatternFollowsTheGrammarAndUnpacks) {
  const int head_dim = GetParam();
  std::mt19937 random(1);
  for (int number = 0; number < PatternCount(head_dim); ++number) {
    for (const bool is_key : {true, false}) {
      SCOPED_TRACE(testing::Message() << "pattern " << number << (is_key ? " K" : " V"));
      const Pattern pattern = PatternOf(is_key, head_dim, number);
      TensorLayout layout;
      layout.order.resize(static_cast<size_t>(head_dim));
      std::iota(layout.order.begin(), layout.order.end(), static_cast<uint8_t>(0));
      std::shuffle(layout.order.begin(), layout.order.end(), random);
      Codes codes;
      for (int place = 0; place < head_dim; ++place) {
        const unsigned levels = 1u << pattern.width[place / kGroupChannels];
        for (uint8_t& code : codes.value[layout.order[static_cast<size_t>(place)]]) {
          code = static_cast<uint8_t>(random() % levels);
        }
      }
      // A canary behind the planes.
      const size_t bytes = GroupBytes(pattern.total());
      std::vector<std::byte> planes(bytes + 64, std::byte{0xA5});
      PackBlock(pattern, layout, is_key, codes.value, planes.data());
      EXPECT_TRUE(std::all_of(planes.begin() + static_cast<long>(bytes), planes.end(),
                              [](std::byte b) { return b == std::byte{0xA5}; }));

      Codes unpacked;
      UnpackBlock(pattern, is_key, planes.data(), unpacked.value);
      const std::byte* group = planes.data();
      for (int place = 0; place < pattern.stored_groups() * kGroupChannels; ++place) {
        const int width = pattern.width[place / kGroupChannels];
        const uint8_t* expected = codes.value[layout.order[static_cast<size_t>(place)]];
        for (int token = 0; token < kBlockTokens; ++token) {
          const int within = place % kGroupChannels;
          const int read = is_key ? CodeFromKeyGroup(width, within, token, group)
                                  : CodeFromValueGroup(width, within, token, group);
          ASSERT_EQ(read, expected[token]) << "place " << place << ", token " << token;
          ASSERT_EQ(unpacked.value[place][token], expected[token]);
        }
        if (place % kGroupChannels == kGroupChannels - 1) group += GroupBytes(width);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, PackTest, ::testing::Values(64, 128, 256));

TEST(PatternTest, NumbersHaveTheWidthsThatFormatMdStates) {
  for (const int head_dim : {64, 128, 256}) {
    for (int number = 0; number < PatternCount(head_dim); ++number) {
      for (const bool is_key : {true, false}) {
        const Pattern pattern = PatternOf(is_key, head_dim, number);
        EXPECT_EQ(pattern.groups, head_dim / 32);
        const int quarter_bits = head_dim == 64 ? 2 * (number + 1) : number + 2;
        EXPECT_EQ(4 * pattern.total(), quarter_bits * pattern.groups);
        for (int g = 1; g < pattern.groups; ++g) EXPECT_LE(pattern.width[g], pattern.width[g - 1]);
      }
    }
  }
}

TEST(FormatTest, TablesAndTokenScalesUseEveryEntryOnce) {
  for (const int head_dim : {64, 128, 256}) {
    std::vector<int> k(static_cast<size_t>(2 * head_dim)), v = k;
    for (int place = 0; place < head_dim; ++place) {
      ++k[static_cast<size_t>(KTableIndex(head_dim, place))];
      ++k[static_cast<size_t>(KTableIndex(head_dim, place) + CentreDistance(head_dim))];
      ++v[static_cast<size_t>(VTableIndex(head_dim, place))];
      ++v[static_cast<size_t>(VTableIndex(head_dim, place) + CentreDistance(head_dim))];
    }
    EXPECT_EQ(k, std::vector<int>(k.size(), 1));
    EXPECT_EQ(v, std::vector<int>(v.size(), 1));
  }
  std::vector<int> scales(kTokenScaleBytes);
  for (int token = 0; token < kBlockTokens; ++token) {
    ++scales[static_cast<size_t>(KTokenScaleIndex(token))];
    ++scales[static_cast<size_t>(VTokenScaleIndex(token))];
  }
  EXPECT_EQ(scales, std::vector<int>(kTokenScaleBytes, 1));
}

}  // namespace
}  // namespace kvdepot::planes
