// XXH3-64, seed 0, for inputs of whole 8-byte words: its steps, the same on host and device, so
// that a warp can share the work (gpu/checksum_cuda.cu).
//
// After the specification at https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, with
// its default secret. Host code that hashes alone uses the library.
#ifndef KVDEPOT_GPU_XXH3_H_
#define KVDEPOT_GPU_XXH3_H_

#include <cstddef>
#include <cstdint>

#include "gpu/host_device.h"

namespace kvdepot::xxh3 {

inline constexpr uint32_t kPrime32A = 0x9E3779B1u;
inline constexpr uint32_t kPrime32B = 0x85EBCA77u;
inline constexpr uint32_t kPrime32C = 0xC2B2AE3Du;
inline constexpr uint64_t kPrime64A = 0x9E3779B185EBCA87u;
inline constexpr uint64_t kPrime64B = 0xC2B2AE3D27D4EB4Fu;
inline constexpr uint64_t kPrime64C = 0x165667B19E3779F9u;
inline constexpr uint64_t kPrime64D = 0x85EBCA77C2B2AE63u;
inline constexpr uint64_t kPrime64E = 0x27D4EB2F165667C5u;

// Above `kShortBytesMax`, input goes through 8 accumulators: stripes of 8 words, one word each; 16
// stripes make a block, after which they are scrambled.
inline constexpr size_t kShortBytesMax = 240;
inline constexpr int kAccumulators = 8;
inline constexpr int kStripesPerBlock = 16;

struct Secret {
  uint8_t bytes[192];
};

constexpr Secret DefaultSecret() {
  return {{
      0xB8, 0xFE, 0x6C, 0x39, 0x23, 0xA4, 0x4B, 0xBE, 0x7C, 0x01, 0x81, 0x2C, 0xF7, 0x21, 0xAD,
      0x1C, 0xDE, 0xD4, 0x6D, 0xE9, 0x83, 0x90, 0x97, 0xDB, 0x72, 0x40, 0xA4, 0xA4, 0xB7, 0xB3,
      0x67, 0x1F, 0xCB, 0x79, 0xE6, 0x4E, 0xCC, 0xC0, 0xE5, 0x78, 0x82, 0x5A, 0xD0, 0x7D, 0xCC,
      0xFF, 0x72, 0x21, 0xB8, 0x08, 0x46, 0x74, 0xF7, 0x43, 0x24, 0x8E, 0xE0, 0x35, 0x90, 0xE6,
      0x81, 0x3A, 0x26, 0x4C, 0x3C, 0x28, 0x52, 0xBB, 0x91, 0xC3, 0x00, 0xCB, 0x88, 0xD0, 0x65,
      0x8B, 0x1B, 0x53, 0x2E, 0xA3, 0x71, 0x64, 0x48, 0x97, 0xA2, 0x0D, 0xF9, 0x4E, 0x38, 0x19,
      0xEF, 0x46, 0xA9, 0xDE, 0xAC, 0xD8, 0xA8, 0xFA, 0x76, 0x3F, 0xE3, 0x9C, 0x34, 0x3F, 0xF9,
      0xDC, 0xBB, 0xC7, 0xC7, 0x0B, 0x4F, 0x1D, 0x8A, 0x51, 0xE0, 0x4B, 0xCD, 0xB4, 0x59, 0x31,
      0xC8, 0x9F, 0x7E, 0xC9, 0xD9, 0x78, 0x73, 0x64, 0xEA, 0xC5, 0xAC, 0x83, 0x34, 0xD3, 0xEB,
      0xC3, 0xC5, 0x81, 0xA0, 0xFF, 0xFA, 0x13, 0x63, 0xEB, 0x17, 0x0D, 0xDD, 0x51, 0xB7, 0xF0,
      0xDA, 0x49, 0xD3, 0x16, 0x55, 0x26, 0x29, 0xD4, 0x68, 0x9E, 0x2B, 0x16, 0xBE, 0x58, 0x7D,
      0x47, 0xA1, 0xFC, 0x8F, 0xF8, 0xB8, 0xD1, 0x7A, 0xD0, 0x31, 0xCE, 0x45, 0xCB, 0x3A, 0x8F,
      0x95, 0x16, 0x04, 0x28, 0xAF, 0xD7, 0xFB, 0xCA, 0xBB, 0x4B, 0x40, 0x7E,
  }};
}

// Eight bytes of the secret, at any offset.
KVDEPOT_HOST_DEVICE inline uint64_t SecretWord(const Secret& secret, int offset) {
  uint64_t word = 0;
  for (int i = 7; i >= 0; --i) word = word << 8 | secret.bytes[offset + i];
  return word;
}

KVDEPOT_HOST_DEVICE inline uint64_t FoldedProduct(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return (a * b) ^ __umul64hi(a, b);
#else
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

KVDEPOT_HOST_DEVICE inline uint64_t Avalanche(uint64_t hash) {
  hash ^= hash >> 37;
  hash *= 0x165667919E3779F9u;
  return hash ^ hash >> 32;
}

// First value of accumulator `index`.
KVDEPOT_HOST_DEVICE inline uint64_t InitialAccumulator(int index) {
  switch (index) {
    case 0:
      return kPrime32C;
    case 1:
      return kPrime64A;
    case 2:
      return kPrime64B;
    case 3:
      return kPrime64C;
    case 4:
      return kPrime64D;
    case 5:
      return kPrime32B;
    case 6:
      return kPrime64E;
    default:
      return kPrime32A;
  }
}

// What a word adds to its own accumulator; it adds itself to the neighbour, index ^ 1.
KVDEPOT_HOST_DEVICE inline uint64_t KeyedProduct(uint64_t word, uint64_t secret_word) {
  const uint64_t key = word ^ secret_word;
  return (key & 0xFFFFFFFFu) * (key >> 32);
}

// `secret_word` is ScrambleSecret of the accumulator.
KVDEPOT_HOST_DEVICE inline uint64_t Scrambled(uint64_t accumulator, uint64_t secret_word) {
  accumulator ^= accumulator >> 47;
  return (accumulator ^ secret_word) * kPrime32A;
}
KVDEPOT_HOST_DEVICE inline uint64_t ScrambleSecret(const Secret& secret, int index) {
  return SecretWord(secret, 128 + 8 * index);
}

// What accumulators 2 pair and 2 pair + 1 add to the hash, before Avalanche; it starts at size *
// kPrime64A.
KVDEPOT_HOST_DEVICE inline uint64_t MergedPair(uint64_t even, uint64_t odd, const Secret& secret,
                                               int pair) {
  return FoldedProduct(even ^ SecretWord(secret, 11 + 16 * pair),
                       odd ^ SecretWord(secret, 19 + 16 * pair));
}

// Where the secret of stripe `stripe` of a block begins, and of the input's last stripe, which
// overlaps the one before.
inline constexpr int kSecretLastStripe = 121;
KVDEPOT_HOST_DEVICE constexpr int SecretOfStripe(int stripe) { return 8 * stripe; }

// How an input above kShortBytesMax falls into whole blocks, then whole stripes, then the last 8
// words.
struct LongInput {
  size_t blocks;
  int rest_stripes;
};
KVDEPOT_HOST_DEVICE constexpr LongInput DivideLongInput(size_t size_bytes) {
  const size_t blocks = (size_bytes - 1) / (64 * kStripesPerBlock);
  return {blocks, static_cast<int>((size_bytes - 1 - blocks * 64 * kStripesPerBlock) / 64)};
}

KVDEPOT_HOST_DEVICE inline uint64_t MixedPair(const uint64_t* words, const Secret& secret,
                                              int offset) {
  return FoldedProduct(words[0] ^ SecretWord(secret, offset),
                       words[1] ^ SecretWord(secret, offset + 8));
}

// Hash of `count` words, at most kShortBytesMax.
KVDEPOT_HOST_DEVICE inline uint64_t ShortHash(const uint64_t* words, int count,
                                              const Secret& secret) {
  const uint64_t size = 8 * static_cast<uint64_t>(count);
  if (count == 1) {
    uint64_t hash =
        (words[0] >> 32 | words[0] << 32) ^ SecretWord(secret, 8) ^ SecretWord(secret, 16);
    hash ^= (hash << 49 | hash >> 15) ^ (hash << 24 | hash >> 40);
    hash *= 0x9FB21C651E98DF25u;
    hash ^= (hash >> 35) + size;
    hash *= 0x9FB21C651E98DF25u;
    return hash ^ hash >> 28;
  }
  if (count == 2) {
    const uint64_t low = words[0] ^ SecretWord(secret, 24) ^ SecretWord(secret, 32);
    const uint64_t high = words[1] ^ SecretWord(secret, 40) ^ SecretWord(secret, 48);
    uint64_t swapped = 0;
    for (int i = 0; i < 8; ++i) swapped |= (low >> (8 * i) & 0xFFu) << (8 * (7 - i));
    return Avalanche(size + swapped + high + FoldedProduct(low, high));
  }
  uint64_t hash = size * kPrime64A;
  if (count <= 16) {
    // Pairs from both ends towards the middle.
    for (int i = (count - 1) / 4; i >= 0; --i) {
      hash += MixedPair(words + 2 * i, secret, 32 * i);
      hash += MixedPair(words + count - 2 - 2 * i, secret, 32 * i + 16);
    }
    return Avalanche(hash);
  }
  for (int i = 0; i < 8; ++i) hash += MixedPair(words + 2 * i, secret, 16 * i);
  hash = Avalanche(hash);
  for (int i = 8; i < count / 2; ++i) hash += MixedPair(words + 2 * i, secret, 16 * (i - 8) + 3);
  hash += MixedPair(words + count - 2, secret, 119);
  return Avalanche(hash);
}

}  // namespace kvdepot::xxh3

#endif  // KVDEPOT_GPU_XXH3_H_
