#include "gpu/planes/pack.h"

#include <cstring>

#include "gpu/planes/format.h"

namespace kvdepot::planes {
namespace {

// Eight codes, one a byte, of the eight values of g: a K place's tokens 16x + 8s + 0..7, or a V
// chunk's places 16i + 8s + 0..7. All bit moves below work on eight of them at once.
using Octet = uint64_t;
constexpr Octet kLowBits = 0x0101010101010101u;

// A word's byte for all eight g: nibble s of chunk x comes from field[x][s]; four chunks in `width`
// words.
void PackFields(int width, const Octet (*field)[2], Octet* words) {
  for (int j = 0; j < width; ++j) words[j] = 0;
  for (int s = 0; s < 2; ++s) {
    const int nibble = 4 * s;
    if (width == 3) {
      for (int k = 0; k < 3; ++k) {
        words[k] |= (field[k][s] << 1 | ((field[3][s] >> k) & kLowBits)) << nibble;
      }
      continue;
    }
    for (int x = 0; x < 4; ++x) {
      const int place = 4 - width - FieldShift(width, x);
      words[FieldWord(width, x)] |= field[x][s] << (nibble + place);
    }
  }
}

void UnpackFields(int width, const Octet* words, Octet (*field)[2]) {
  const Octet mask = kLowBits * static_cast<Octet>((1 << width) - 1);
  for (int s = 0; s < 2; ++s) {
    const int nibble = 4 * s;
    if (width == 3) {
      field[3][s] = 0;
      for (int k = 0; k < 3; ++k) {
        field[k][s] = (words[k] >> (nibble + 1)) & mask;
        field[3][s] |= ((words[k] >> nibble) & kLowBits) << k;
      }
      continue;
    }
    for (int x = 0; x < 4; ++x) {
      const int place = 4 - width - FieldShift(width, x);
      field[x][s] = (words[FieldWord(width, x)] >> (nibble + place)) & mask;
    }
  }
}

Octet LoadOctet(const uint8_t* bytes) {
  Octet octet;
  memcpy(&octet, bytes, sizeof(octet));
  return octet;
}

// K: byte e of word (j, h) of lane 4g + t is place 16h + 4t + e of the group; its fields are tokens
// 16x + 8s + g.
struct KeyByte {
  int h, t, e;
  explicit KeyByte(int place) : h(place / 16), t(place % 16 / 4), e(place % 4) {}
  size_t offset(int width, int g, int j) const {
    return KWordOffset(width, 4 * g + t, 2 * j + h) + static_cast<size_t>(e);
  }
};

void PackKeyPlace(int width, int place, const uint8_t* tokens, std::byte* group) {
  Octet field[4][2];
  for (int x = 0; x < 4; ++x) {
    for (int s = 0; s < 2; ++s) field[x][s] = LoadOctet(tokens + 16 * x + 8 * s);
  }
  Octet words[4] = {};
  PackFields(width, field, words);
  const KeyByte byte(place);
  for (int j = 0; j < width; ++j) {
    for (int g = 0; g < 8; ++g)
      group[byte.offset(width, g, j)] = static_cast<std::byte>(words[j] >> (8 * g));
  }
}

void UnpackKeyPlace(int width, int place, const std::byte* group, uint8_t* tokens) {
  const KeyByte byte(place);
  Octet words[4] = {};
  for (int j = 0; j < width; ++j) {
    words[j] = 0;
    for (int g = 0; g < 8; ++g)
      words[j] |= static_cast<Octet>(group[byte.offset(width, g, j)]) << (8 * g);
  }
  Octet field[4][2];
  UnpackFields(width, words, field);
  for (int x = 0; x < 4; ++x) {
    for (int s = 0; s < 2; ++s) memcpy(tokens + 16 * x + 8 * s, &field[x][s], sizeof(Octet));
  }
}

// V: byte e of a word of lane 4g + t is token 8 (e mod 2) + 2t + e / 2 of chunk x; its fields are
// places 8s + g of the tile. Octets run over eight tokens of a chunk here.
int ValueTokenT(int token) { return token % 8 / 2; }
int ValueTokenByte(int token) { return token / 8 + 2 * (token % 2); }

// Two places of a tile that share bytes: g of s = 0 and g of s = 1, 16 tokens a chunk as two
// octets.
void PackValuePair(int width, int tile, int g, const uint8_t* low, const uint8_t* high,
                   std::byte* group) {
  for (int half = 0; half < 2; ++half) {
    Octet field[4][2];
    for (int x = 0; x < 4; ++x) {
      field[x][0] = LoadOctet(low + 16 * x + 8 * half);
      field[x][1] = LoadOctet(high + 16 * x + 8 * half);
    }
    Octet words[4] = {};
    PackFields(width, field, words);
    for (int j = 0; j < width; ++j) {
      for (int o = 0; o < 8; ++o) {
        const int token = 8 * half + o;
        const size_t offset = VWordOffset(width, tile, 4 * g + ValueTokenT(token), j);
        group[offset + static_cast<size_t>(ValueTokenByte(token))] =
            static_cast<std::byte>(words[j] >> (8 * o));
      }
    }
  }
}

void UnpackValuePair(int width, int tile, int g, const std::byte* group, uint8_t* low,
                     uint8_t* high) {
  for (int half = 0; half < 2; ++half) {
    Octet words[4] = {};
    for (int j = 0; j < width; ++j) {
      words[j] = 0;
      for (int o = 0; o < 8; ++o) {
        const int token = 8 * half + o;
        const size_t offset = VWordOffset(width, tile, 4 * g + ValueTokenT(token), j);
        words[j] |= static_cast<Octet>(group[offset + static_cast<size_t>(ValueTokenByte(token))])
                    << (8 * o);
      }
    }
    Octet field[4][2];
    UnpackFields(width, words, field);
    for (int x = 0; x < 4; ++x) {
      memcpy(low + 16 * x + 8 * half, &field[x][0], sizeof(Octet));
      memcpy(high + 16 * x + 8 * half, &field[x][1], sizeof(Octet));
    }
  }
}

}  // namespace

void WriteTable(int head_dim, const TensorLayout& layout, bool is_key, const uint16_t* stored_scale,
                const uint16_t* centre, std::byte* table) {
  uint16_t* entries = reinterpret_cast<uint16_t*>(table);
  for (int place = 0; place < head_dim; ++place) {
    const int channel = layout.order[static_cast<size_t>(place)];
    const int index = is_key ? KTableIndex(head_dim, place) : VTableIndex(head_dim, place);
    entries[index] = stored_scale[channel];
    entries[index + CentreDistance(head_dim)] = centre[channel];
  }
}

void WriteTokenScales(const uint8_t* codes, bool is_key, std::byte* record) {
  for (int token = 0; token < kBlockTokens; ++token) {
    record[is_key ? KTokenScaleIndex(token) : VTokenScaleIndex(token)] =
        static_cast<std::byte>(codes[token]);
  }
}

void PackBlock(const Pattern& pattern, const TensorLayout& layout, bool is_key,
               const uint8_t (*codes)[kBlockTokens], std::byte* planes) {
  for (int group = 0; group < pattern.stored_groups(); ++group) {
    const int width = pattern.width[group];
    const uint8_t* order = layout.order.data() + group * kGroupChannels;
    if (is_key) {
      for (int place = 0; place < kGroupChannels; ++place)
        PackKeyPlace(width, place, codes[order[place]], planes);
    } else {
      for (int tile = 0; tile < 2; ++tile) {
        for (int g = 0; g < 8; ++g) {
          PackValuePair(width, tile, g, codes[order[16 * tile + g]],
                        codes[order[16 * tile + 8 + g]], planes);
        }
      }
    }
    planes += GroupBytes(width);
  }
}

void UnpackBlock(const Pattern& pattern, bool is_key, const std::byte* planes,
                 uint8_t (*codes)[kBlockTokens]) {
  for (int group = 0; group < pattern.stored_groups(); ++group) {
    const int width = pattern.width[group];
    uint8_t(*places)[kBlockTokens] = codes + group * kGroupChannels;
    if (is_key) {
      for (int place = 0; place < kGroupChannels; ++place)
        UnpackKeyPlace(width, place, planes, places[place]);
    } else {
      for (int tile = 0; tile < 2; ++tile) {
        for (int g = 0; g < 8; ++g) {
          UnpackValuePair(width, tile, g, planes, places[16 * tile + g], places[16 * tile + 8 + g]);
        }
      }
    }
    planes += GroupBytes(width);
  }
}

}  // namespace kvdepot::planes
