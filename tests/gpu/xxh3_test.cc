// The steps that kernels share, put together by one thread, against the xxHash library.
#include "gpu/xxh3.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "xxhash.h"

namespace kvdepot::xxh3 {
namespace {

uint64_t LongHash(const uint64_t* words, size_t count, const Secret& secret) {
  const LongInput input = DivideLongInput(8 * count);
  uint64_t accumulators[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) accumulators[i] = InitialAccumulator(i);
  const auto add_stripe = [&](const uint64_t* stripe, int secret_offset) {
    for (int i = 0; i < kAccumulators; ++i) {
      accumulators[i] += KeyedProduct(stripe[i], SecretWord(secret, secret_offset + 8 * i));
      accumulators[i ^ 1] += stripe[i];
    }
  };
  const uint64_t* at = words;
  for (size_t block = 0; block < input.blocks; ++block) {
    for (int s = 0; s < kStripesPerBlock; ++s, at += 8) add_stripe(at, SecretOfStripe(s));
    for (int i = 0; i < kAccumulators; ++i)
      accumulators[i] = Scrambled(accumulators[i], ScrambleSecret(secret, i));
  }
  for (int s = 0; s < input.rest_stripes; ++s, at += 8) add_stripe(at, SecretOfStripe(s));
  add_stripe(words + count - 8, kSecretLastStripe);
  uint64_t hash = 8 * count * kPrime64A;
  for (int pair = 0; pair < 4; ++pair)
    hash += MergedPair(accumulators[2 * pair], accumulators[2 * pair + 1], secret, pair);
  return Avalanche(hash);
}

TEST(Xxh3Test, EqualsTheLibraryForAllCountsOfWords) {
  constexpr size_t kCountMax = 2048;
  std::mt19937_64 random(1);
  std::vector<uint64_t> words(kCountMax);
  for (uint64_t& word : words) word = random();
  const Secret secret = DefaultSecret();
  for (size_t count = 1; count <= kCountMax; ++count) {
    const uint64_t hash = 8 * count <= kShortBytesMax
                              ? ShortHash(words.data(), static_cast<int>(count), secret)
                              : LongHash(words.data(), count, secret);
    ASSERT_EQ(hash, XXH3_64bits(words.data(), 8 * count)) << count << " words";
  }
}

}  // namespace
}  // namespace kvdepot::xxh3
