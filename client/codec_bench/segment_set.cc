#include "client/codec_bench/segment_set.h"

#include <utility>

#include "gpu/packkv/body.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

constexpr char kTenant[] = "bench";

// Of one segment: bits of all values as the paper counts them, and bytes that are K's or V's alone.
struct SegmentSize {
  double k_paper_bits = 0;
  double v_paper_bits = 0;
  double k_bytes = 0;
  double v_bytes = 0;
};

void MeasurePlanes(const SegmentView& segment, SegmentSize* size) {
  const double head_values = static_cast<double>(segment.tokens()) * segment.head_dim();
  for (int head = 0; head < segment.kv_heads(); ++head) {
    const planes::Pattern k = segment.k_pattern(head);
    const planes::Pattern v = segment.v_pattern(head);
    size->k_paper_bits += head_values * k.total() / k.groups;
    size->v_paper_bits += head_values * v.total() / v.groups;
  }
  size->k_bytes = size->k_paper_bits / 8;
  size->v_bytes = size->v_paper_bits / 8;
}

double RoundBytesOf(const packkv::BodyView& body, const SegmentView& segment,
                    packkv::Tensor tensor) {
  size_t bytes = 0;
  for (int block = 0; block < segment.blocks(); ++block) {
    for (int head = 0; head < segment.kv_heads(); ++head) {
      for (int r = 0; r < body.rounds(); ++r) bytes += body.round(block, head, tensor, r).size();
    }
  }
  return static_cast<double>(bytes);
}

void MeasurePackkv(const SegmentView& segment, const std::byte* data, SegmentSize* size) {
  const packkv::BodyView body =
      packkv::BodyView::Of(data + SegmentHeaderBytes(segment.kv_heads()), segment.kv_heads(),
                           segment.head_dim(), segment.blocks());
  const double values =
      static_cast<double>(segment.tokens()) * segment.kv_heads() * segment.head_dim();
  size->k_paper_bits = values * body.PaperBits(packkv::Tensor::kKey);
  size->v_paper_bits = values * body.PaperBits(packkv::Tensor::kValue);
  size->k_bytes = RoundBytesOf(body, segment, packkv::Tensor::kKey);
  size->v_bytes = RoundBytesOf(body, segment, packkv::Tensor::kValue);
}

void MeasureRaw(const SegmentView& segment, SegmentSize* size) {
  size->k_bytes = static_cast<double>(segment.tokens()) * segment.kv_heads() * segment.head_dim() *
                  static_cast<double>(DTypeBytes(segment.dtype()));
  size->v_bytes = size->k_bytes;
  size->k_paper_bits = size->v_paper_bits = 8 * size->k_bytes;
}

}  // namespace

absl::Status SegmentSet::Allocate() {
  const size_t count = layer_.layout().segments.size();
  jobs_.resize(count);
  runs_.resize(count);
  extents_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    absl::Status status = AllocateSegment(i, codec_.codec);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status SegmentSet::AllocateSegment(size_t index, Codec codec) {
  EncodeJob job;
  job.source = layer_.SourceOf(index);
  job.codec = codec;
  job.calibration = codec == Codec::kRaw ? nullptr : calibration();
  job.packkv = codec_.packkv;
  const int tokens = layer_.layout().segments[index];
  const size_t bytes =
      SegmentBytes(job.source.shape, job.source.dtype, codec, job.calibration, tokens, job.packkv);
  absl::StatusOr<std::unique_ptr<Extent>> extent =
      layer_.backend()->Allocate(kTenant, ExtentUse::kSealed, bytes);
  if (!extent.ok()) return extent.status();
  job.segment = (*extent)->data();
  jobs_[index] = job;
  runs_[index] = {SegmentForm(codec), job.segment, tokens, 0, tokens};
  extents_[index] = *std::move(extent);
  return absl::OkStatus();
}

void SegmentSet::Encode() {
  const absl::Span<EncodeJob> all = absl::MakeSpan(jobs_);
  const DumpLayer& layer = layer_.layer();
  // In batches of the size that the backend asks for.
  for (size_t first = 0; first < all.size();) {
    size_t count = 0;
    size_t bytes = 0;
    do {
      const int tokens = layer_.layout().segments[first + count];
      bytes += ExactExtentBytes(layer.shape, layer.dtype, tokens);
      ++count;
    } while (first + count < all.size() && bytes < layer_.backend()->encode_bytes_max());
    layer_.backend()->Encode(all.subspan(first, count));
    first += count;
  }
  layer_.backend()->Synchronize();
}

absl::Status SegmentSet::ReplaceOutOfRange(int* replaced) {
  for (size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].in_range) continue;
    absl::Status status = AllocateSegment(i, Codec::kRaw);
    if (!status.ok()) return status;
    layer_.backend()->Encode(absl::MakeSpan(&jobs_[i], 1));
    ++*replaced;
  }
  return absl::OkStatus();
}

void SegmentSet::Measure(TensorSize* k, TensorSize* v) const {
  for (const EncodeJob& job : jobs_) {
    std::vector<std::byte> bytes(job.size_bytes);
    layer_.backend()->ReadBytes(job.segment, bytes.size(), bytes.data());
    const SegmentView segment = SegmentView::Of(bytes.data());
    SegmentSize size;
    switch (job.codec) {
      case Codec::kRaw:
        MeasureRaw(segment, &size);
        break;
      case Codec::kPlanes:
        MeasurePlanes(segment, &size);
        break;
      case Codec::kPackKv:
        MeasurePackkv(segment, bytes.data(), &size);
        break;
    }
    const double shared = static_cast<double>(bytes.size()) - size.k_bytes - size.v_bytes;
    k->bytes += size.k_bytes + shared / 2;
    v->bytes += size.v_bytes + shared / 2;
    k->paper_bits += size.k_paper_bits;
    v->paper_bits += size.v_paper_bits;
  }
  const double values = static_cast<double>(layer_.layout().sealed_tokens()) *
                        static_cast<double>(layer_.layer().shape.row_values());
  k->paper_bits /= values;
  v->paper_bits /= values;
}

}  // namespace kvdepot
