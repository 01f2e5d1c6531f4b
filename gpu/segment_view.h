// The header of a segment, and where each head's part begins (gpu/FORMAT.md).
//
// ValidateSegment checks bytes from outside; SegmentView::Of trusts bytes that this process
// encoded. Views own nothing.
#ifndef KVDEPOT_GPU_SEGMENT_VIEW_H_
#define KVDEPOT_GPU_SEGMENT_VIEW_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/calibration.h"
#include "gpu/packkv/body.h"
#include "gpu/planes/pattern.h"
#include "gpu/segment_header.h"
#include "gpu/shape.h"

namespace kvdepot {

class SegmentView {
 public:
  // Requires a whole, valid segment at `data`.
  static SegmentView Of(const std::byte* data) { return SegmentView(data); }

  const SegmentHeader& header() const { return *reinterpret_cast<const SegmentHeader*>(data_); }
  Codec codec() const { return static_cast<Codec>(header().codec); }
  DType dtype() const { return static_cast<DType>(header().dtype); }
  int tokens() const { return static_cast<int>(header().tokens); }
  int blocks() const { return tokens() / kBlockTokens; }
  int kv_heads() const { return header().kv_heads; }
  int head_dim() const { return header().head_dim; }
  size_t size_bytes() const { return header().size_bytes; }

  // Planes only.
  planes::Pattern k_pattern(int head) const {
    return planes::KeyPattern(head_dim(), PatternNumber(2 * head));
  }
  planes::Pattern v_pattern(int head) const {
    return planes::ValuePattern(head_dim(), PatternNumber(2 * head + 1));
  }

  // `packkv` only: all that is behind the header.
  packkv::BodyView packkv_body() const {
    return packkv::BodyView::Of(data_ + SegmentHeaderBytes(kv_heads()), kv_heads(), head_dim(),
                                blocks());
  }

  // Not of `packkv`: first byte of a head's part, and the part's size.
  const std::byte* part(int head) const;
  size_t part_bytes(int head) const;

 private:
  explicit SegmentView(const std::byte* data) : data_(data) {}
  uint8_t PatternNumber(int index) const {
    return static_cast<uint8_t>(data_[sizeof(SegmentHeader) + static_cast<size_t>(index)]);
  }

  const std::byte* data_;
};

// Writes header and pattern numbers with a zero checksum. `calibration` is that of `planes`, null
// for others; `size_bytes` is that of the whole segment.
void WriteSegmentHeader(const LayerShape& shape, DType dtype, Codec codec,
                        const LayerCalibration* calibration, int tokens, size_t size_bytes,
                        std::byte* segment);

// Of the largest header.
inline constexpr int kSegmentKvHeadsMax = 1024;
inline constexpr size_t kSegmentHeaderBytesMax = SegmentHeaderBytes(kSegmentKvHeadsMax);

// gpu/FORMAT.md, "Checksum", whatever the checksum field holds. `segment` has a whole header.
uint64_t SegmentChecksum(absl::Span<const std::byte> segment);

// Whether a segment with a valid header is of that geometry. DATA_LOSS as ValidateSegment.
absl::Status CheckGeometry(const SegmentView& segment, const SegmentGeometry& geometry);

// Checks everything that reading a segment relies on: magic, version, geometry, pattern numbers,
// the body of `packkv`, size, checksum. DATA_LOSS names the field, its value and what was expected.
// `bytes` may be anything and need no alignment; a view of it may be used only if it is 8-byte
// aligned.
absl::Status ValidateSegment(absl::Span<const std::byte> bytes);

// The same of a segment of `size_bytes` that lies elsewhere: `first_bytes` are as many of its first
// as there are, up to kSegmentHeaderBytesMax; `checksum` is that of all. Of `packkv` the body is
// left out: who cannot vouch for it reads the whole segment.
absl::Status ValidateSegment(absl::Span<const std::byte> first_bytes, size_t size_bytes,
                             uint64_t checksum);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENT_VIEW_H_
