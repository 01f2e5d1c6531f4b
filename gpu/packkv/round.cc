#include "gpu/packkv/round.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot::packkv {
namespace {

constexpr size_t kAlignment = 16;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
size_t BytesOf(size_t bits) { return (bits + 7) / 8; }

int BitWidth(unsigned value) { return value == 0 ? 0 : 32 - __builtin_clz(value); }

// A stream of bits, the first in the lowest bit of the first byte.
class BitWriter {
 public:
  explicit BitWriter(std::byte* bytes) : bytes_(bytes) {}
  void Put(size_t at, unsigned value, int bits) {
    for (int b = 0; b < bits; ++b) {
      if ((value >> b & 1) != 0) {
        bytes_[(at + static_cast<size_t>(b)) / 8] |= std::byte{1}
                                                     << ((at + static_cast<size_t>(b)) % 8);
      }
    }
  }

 private:
  std::byte* bytes_;
};

unsigned Bits(const std::byte* bytes, size_t at, int bits) {
  unsigned value = 0;
  for (int b = 0; b < bits; ++b) {
    const size_t bit = at + static_cast<size_t>(b);
    value |= (std::to_integer<unsigned>(bytes[bit / 8]) >> (bit % 8) & 1u) << b;
  }
  return value;
}

size_t WidthsAt(const RoundShape& shape) {
  return BytesOf(static_cast<size_t>(shape.head_dim) * static_cast<size_t>(shape.code_bits));
}

// Bit b of all widths lies in a row of bits, channel after channel.
size_t WidthBitAt(const RoundShape& shape, int channel, int bit) {
  return static_cast<size_t>(bit) * static_cast<size_t>(shape.head_dim) +
         static_cast<size_t>(channel);
}

int WidthOf(const RoundShape& shape, const std::byte* round, int channel) {
  int width = 0;
  for (int bit = 0; bit < WidthCodeBits(shape.code_bits); ++bit) {
    width |= static_cast<int>(Bits(round + WidthsAt(shape), WidthBitAt(shape, channel, bit), 1))
             << bit;
  }
  return width;
}

// Calls visit(channel, bits a code, bits of the code below these, first bit behind the header)
// for every part of the channels.
template <typename Widths, typename Visit>
size_t ForEachPart(const RoundShape& shape, const Widths& widths, const Visit& visit) {
  size_t at = 0;
  const auto part = [&](int channel, int bits, int below) {
    visit(channel, bits, below, at);
    at += static_cast<size_t>(bits * shape.pack_tokens);
  };
  for (int channel = 0; channel < shape.head_dim; ++channel)
    for (int below = 0; below + 2 <= widths(channel); below += 2) part(channel, 2, below);
  for (int channel = 0; channel < shape.head_dim; ++channel)
    if (widths(channel) % 2 != 0) part(channel, 1, widths(channel) - 1);
  return BytesOf(at);
}

}  // namespace

size_t RoundBytesMax(const RoundShape& shape) {
  return RoundHeaderBytes(shape.head_dim, shape.code_bits) +
         Aligned(BytesOf(shape.code_count() * static_cast<size_t>(shape.code_bits)));
}

void AppendRound(const RoundShape& shape, absl::Span<const uint8_t> codes,
                 std::vector<std::byte>* bytes) {
  KVDEPOT_CHECK(codes.size() == shape.code_count());
  const size_t channels = static_cast<size_t>(shape.head_dim);
  std::vector<uint8_t> least(codes.begin(), codes.begin() + shape.head_dim);
  std::vector<uint8_t> most = least;
  for (size_t i = channels; i < codes.size(); ++i) {
    least[i % channels] = std::min(least[i % channels], codes[i]);
    most[i % channels] = std::max(most[i % channels], codes[i]);
  }
  const auto width = [&](int channel) {
    const size_t c = static_cast<size_t>(channel);
    return BitWidth(static_cast<unsigned>(most[c] - least[c]));
  };
  const size_t header_bytes = RoundHeaderBytes(shape.head_dim, shape.code_bits);
  const size_t part_bytes = ForEachPart(shape, width, [](int, int, int, size_t) {});
  const size_t begin = bytes->size();
  bytes->resize(begin + header_bytes + Aligned(part_bytes));
  std::byte* const round = bytes->data() + begin;

  BitWriter minima(round);
  BitWriter widths(round + WidthsAt(shape));
  const int width_bits = WidthCodeBits(shape.code_bits);
  for (size_t c = 0; c < channels; ++c) {
    minima.Put(c * static_cast<size_t>(shape.code_bits), least[c], shape.code_bits);
    for (int bit = 0; bit < width_bits; ++bit) {
      const int channel = static_cast<int>(c);
      widths.Put(WidthBitAt(shape, channel, bit), static_cast<unsigned>(width(channel) >> bit & 1),
                 1);
    }
  }
  BitWriter parts(round + header_bytes);
  ForEachPart(shape, width, [&](int channel, int bits, int below, size_t at) {
    for (int token = 0; token < shape.pack_tokens; ++token) {
      const size_t c = static_cast<size_t>(channel);
      const unsigned offset =
          static_cast<unsigned>(codes[static_cast<size_t>(token) * channels + c] - least[c]);
      parts.Put(at + static_cast<size_t>(BitOf(shape.pack_tokens, bits, token)),
                offset >> below & ((1u << bits) - 1), bits);
    }
  });
}

absl::StatusOr<int> SumOfWidths(const RoundShape& shape, absl::Span<const std::byte> round) {
  int sum = 0;
  for (int channel = 0; channel < shape.head_dim; ++channel) {
    const int width = WidthOf(shape, round.data(), channel);
    if (width > shape.code_bits) {
      return absl::DataLossError(absl::StrCat("segment width of channel ", channel, " is ", width,
                                              ", expected at most ", shape.code_bits));
    }
    sum += width;
  }
  return sum;
}

absl::StatusOr<size_t> RoundBytes(const RoundShape& shape, absl::Span<const std::byte> round) {
  const size_t header_bytes = RoundHeaderBytes(shape.head_dim, shape.code_bits);
  if (round.size() < header_bytes) {
    return absl::DataLossError(absl::StrCat("segment round has ", round.size(),
                                            " bytes, expected at least ", header_bytes));
  }
  const absl::StatusOr<int> widths = SumOfWidths(shape, round);
  if (!widths.ok()) return widths.status();
  const size_t part_bytes = ForEachPart(
      shape, [&](int channel) { return WidthOf(shape, round.data(), channel); },
      [](int, int, int, size_t) {});
  const size_t bytes = header_bytes + Aligned(part_bytes);
  if (bytes <= round.size()) return bytes;
  return absl::DataLossError(
      absl::StrCat("segment round has ", round.size(), " bytes, expected ", bytes));
}

void ReadRound(const RoundShape& shape, const std::byte* round, absl::Span<uint8_t> codes) {
  KVDEPOT_CHECK(codes.size() == shape.code_count());
  const size_t channels = static_cast<size_t>(shape.head_dim);
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<uint8_t>(
        Bits(round, i % channels * static_cast<size_t>(shape.code_bits), shape.code_bits));
  }
  const std::byte* const parts = round + RoundHeaderBytes(shape.head_dim, shape.code_bits);
  ForEachPart(
      shape, [&](int channel) { return WidthOf(shape, round, channel); },
      [&](int channel, int bits, int below, size_t at) {
        for (int token = 0; token < shape.pack_tokens; ++token) {
          const unsigned part =
              Bits(parts, at + static_cast<size_t>(BitOf(shape.pack_tokens, bits, token)), bits);
          uint8_t& code =
              codes[static_cast<size_t>(token) * channels + static_cast<size_t>(channel)];
          code = static_cast<uint8_t>(code + (part << below));
        }
      });
}

}  // namespace kvdepot::packkv
