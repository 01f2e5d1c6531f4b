#include "gpu/segment_view.h"

#include <algorithm>
#include <cstring>
#include <vector>

#define XXH_INLINE_ALL
#include "absl/strings/str_cat.h"
#include "gpu/backend.h"
#include "gpu/check.h"
#include "gpu/planes/format.h"
#include "xxhash.h"

namespace kvdepot {
namespace {

constexpr uint8_t kMagic[4] = {'K', 'V', 'D', 'S'};

absl::Status Damaged(absl::string_view field, uint64_t value, absl::string_view expected) {
  return absl::DataLossError(
      absl::StrCat("segment ", field, " is ", value, ", expected ", expected));
}

size_t RawPartBytes(int head_dim, DType dtype, int tokens) {
  return 2 * static_cast<size_t>(head_dim) * static_cast<size_t>(tokens) * DTypeBytes(dtype);
}

absl::Status ValidateGeometry(const SegmentHeader& header) {
  if (memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    return absl::DataLossError("segment magic is not KVDS");
  if (header.version != kSegmentFormatVersion) {
    return Damaged("version", header.version,
                   absl::StrCat(kSegmentFormatVersion, ", the only one that this build reads"));
  }
  if (header.codec < 1 || header.codec > kCodecCount)
    return Damaged("codec", header.codec, "1 (raw), 2 (planes) or 3 (packkv)");
  if (header.dtype < 1 || header.dtype > 3) return Damaged("dtype", header.dtype, "1 to 3");
  if (header.tokens == 0 || header.tokens % kBlockTokens != 0 ||
      header.tokens > kSegmentTokensMax) {
    return Damaged("tokens", header.tokens, "a multiple of 64 from 64 to 1024");
  }
  if (header.kv_heads == 0 || header.kv_heads > kSegmentKvHeadsMax)
    return Damaged("kv_heads", header.kv_heads, "1 to 1024");
  if (planes::PatternCount(header.head_dim) == 0)
    return Damaged("head_dim", header.head_dim, "64, 128 or 256");
  return absl::OkStatus();
}

// All but the checksum and the body of `packkv`. `first_bytes` as in ValidateSegment.
absl::Status ValidateHeader(absl::Span<const std::byte> first_bytes, size_t size_bytes) {
  if (size_bytes < sizeof(SegmentHeader)) return Damaged("length", size_bytes, "at least 64");
  SegmentHeader header;
  memcpy(&header, first_bytes.data(), sizeof(header));
  if (absl::Status status = ValidateGeometry(header); !status.ok()) return status;
  if (header.size_bytes != size_bytes)
    return Damaged("length", size_bytes, absl::StrCat(header.size_bytes));
  const size_t header_bytes = SegmentHeaderBytes(header.kv_heads);
  if (size_bytes < header_bytes)
    return Damaged("length", size_bytes, absl::StrCat("at least ", header_bytes));
  // Its body says how long it is.
  if (header.codec == static_cast<uint8_t>(Codec::kPackKv)) return absl::OkStatus();

  const int tokens = static_cast<int>(header.tokens);
  size_t expected = header_bytes;
  for (int h = 0; h < header.kv_heads; ++h) {
    if (header.codec == static_cast<uint8_t>(Codec::kRaw)) {
      expected += RawPartBytes(header.head_dim, static_cast<DType>(header.dtype), tokens);
      continue;
    }
    const size_t entry = sizeof(header) + 2 * static_cast<size_t>(h);
    const int k = static_cast<int>(first_bytes[entry]);
    const int v = static_cast<int>(first_bytes[entry + 1]);
    const int count = planes::PatternCount(header.head_dim);
    if (k >= count || v >= count) {
      return Damaged(absl::StrCat("pattern of head ", h), static_cast<uint64_t>(k >= count ? k : v),
                     absl::StrCat("below ", count));
    }
    expected += planes::PartBytes(header.head_dim, planes::KeyPattern(header.head_dim, k),
                                  planes::ValuePattern(header.head_dim, v), tokens / kBlockTokens);
  }
  if (size_bytes != expected)
    return Damaged("length", size_bytes, absl::StrCat(expected, " for its geometry"));
  return absl::OkStatus();
}

// That of a `packkv` segment with a valid header.
absl::Status ValidatePackKvBody(absl::Span<const std::byte> bytes) {
  SegmentHeader header;
  memcpy(&header, bytes.data(), sizeof(header));
  absl::Span<const std::byte> body = bytes.subspan(SegmentHeaderBytes(header.kv_heads));
  std::vector<uint64_t> aligned;
  if (reinterpret_cast<uintptr_t>(body.data()) % sizeof(uint64_t) != 0) {
    aligned.resize(body.size() / sizeof(uint64_t) + 1);
    memcpy(aligned.data(), body.data(), body.size());
    body = {reinterpret_cast<const std::byte*>(aligned.data()), body.size()};
  }
  return packkv::BodyView::Validate(body, header.kv_heads, header.head_dim,
                                    static_cast<int>(header.tokens) / kBlockTokens)
      .status();
}

absl::Status CheckChecksum(absl::Span<const std::byte> first_bytes, uint64_t checksum) {
  SegmentHeader header;
  memcpy(&header, first_bytes.data(), sizeof(header));
  if (header.checksum == checksum) return absl::OkStatus();
  return Damaged("checksum", header.checksum, absl::StrCat(checksum));
}

}  // namespace

size_t SegmentView::part_bytes(int head) const {
  KVDEPOT_CHECK(codec() != Codec::kPackKv);
  if (codec() == Codec::kRaw) return RawPartBytes(head_dim(), dtype(), tokens());
  return planes::PartBytes(head_dim(), k_pattern(head), v_pattern(head), blocks());
}

const std::byte* SegmentView::part(int head) const {
  const std::byte* begin = data_ + SegmentHeaderBytes(kv_heads());
  for (int h = 0; h < head; ++h) begin += part_bytes(h);
  return begin;
}

void WriteSegmentHeader(const LayerShape& shape, DType dtype, Codec codec,
                        const LayerCalibration* calibration, int tokens, size_t size_bytes,
                        std::byte* segment) {
  constexpr uint8_t kNoHash[16] = {};
  const SegmentHeader header = MakeSegmentHeader(
      codec, dtype, static_cast<uint32_t>(tokens), shape.kv_heads, shape.head_dim, size_bytes,
      codec == Codec::kPlanes ? calibration->hash_prefix.data() : kNoHash);
  memset(segment, 0, SegmentHeaderBytes(shape.kv_heads));
  memcpy(segment, &header, sizeof(header));
  if (codec != Codec::kPlanes) return;
  std::byte* pattern = segment + sizeof(header);
  for (const HeadLayout& head : calibration->heads) {
    *pattern++ = static_cast<std::byte>(head.k.pattern);
    *pattern++ = static_cast<std::byte>(head.v.pattern);
  }
}

uint64_t SegmentChecksum(absl::Span<const std::byte> segment) {
  std::byte first[kChecksumPieceBytes];
  const size_t first_bytes = std::min(segment.size(), sizeof(first));
  memcpy(first, segment.data(), first_bytes);
  memset(first + offsetof(SegmentHeader, checksum), 0, sizeof(uint64_t));

  std::vector<uint64_t> hashes;
  hashes.reserve(segment.size() / kChecksumPieceBytes + 1);
  for (size_t begin = 0; begin < segment.size(); begin += kChecksumPieceBytes) {
    const size_t bytes = std::min(segment.size() - begin, kChecksumPieceBytes);
    hashes.push_back(XXH3_64bits(begin == 0 ? first : segment.data() + begin, bytes));
  }
  return XXH3_64bits(hashes.data(), hashes.size() * sizeof(uint64_t));
}

// The checksum costs the most and comes last.
absl::Status CheckGeometry(const SegmentView& segment, const SegmentGeometry& geometry) {
  const auto check = [](absl::string_view field, auto value, auto expected) {
    return value == expected ? absl::OkStatus()
                             : Damaged(field, static_cast<uint64_t>(value),
                                       absl::StrCat(static_cast<uint64_t>(expected)));
  };
  absl::Status status = check("codec", segment.codec(), geometry.codec);
  if (status.ok()) status = check("dtype", segment.dtype(), geometry.dtype);
  if (status.ok()) status = check("kv_heads", segment.kv_heads(), geometry.kv_heads);
  if (status.ok()) status = check("head_dim", segment.head_dim(), geometry.head_dim);
  if (status.ok()) status = check("tokens", segment.tokens(), geometry.tokens);
  return status;
}

absl::Status ValidateSegment(absl::Span<const std::byte> bytes) {
  absl::Status status = ValidateHeader(bytes, bytes.size());
  if (status.ok() &&
      bytes[offsetof(SegmentHeader, codec)] == static_cast<std::byte>(Codec::kPackKv)) {
    status = ValidatePackKvBody(bytes);
  }
  return status.ok() ? CheckChecksum(bytes, SegmentChecksum(bytes)) : status;
}

absl::Status ValidateSegment(absl::Span<const std::byte> first_bytes, size_t size_bytes,
                             uint64_t checksum) {
  absl::Status status = ValidateHeader(first_bytes, size_bytes);
  return status.ok() ? CheckChecksum(first_bytes, checksum) : status;
}

size_t SegmentBytes(const LayerShape& shape, DType dtype, Codec codec,
                    const LayerCalibration* calibration, int tokens,
                    const packkv::Options& packkv) {
  KVDEPOT_CHECK(tokens > 0 && tokens % kBlockTokens == 0 && tokens <= kSegmentTokensMax);
  size_t bytes = SegmentHeaderBytes(shape.kv_heads);
  if (codec == Codec::kPackKv) {
    return bytes + packkv::BodyBytesMax(shape, packkv, tokens / kBlockTokens);
  }
  for (int h = 0; h < shape.kv_heads; ++h) {
    if (codec == Codec::kRaw) {
      bytes += RawPartBytes(shape.head_dim, dtype, tokens);
    } else {
      const HeadLayout& head = calibration->heads[static_cast<size_t>(h)];
      bytes += planes::PartBytes(shape.head_dim, planes::KeyPattern(shape.head_dim, head.k.pattern),
                                 planes::ValuePattern(shape.head_dim, head.v.pattern),
                                 tokens / kBlockTokens);
    }
  }
  return bytes;
}

}  // namespace kvdepot
