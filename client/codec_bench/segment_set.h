// The sealed tokens of a BenchLayer as segments in the backend's memory, encoded by one codec as a
// session encodes them.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_SEGMENT_SET_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_SEGMENT_SET_H_

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/optional.h"
#include "client/codec_bench/bench_layer.h"
#include "gpu/calibration.h"
#include "gpu/packkv/options.h"

namespace kvdepot {

// What encodes the segments: `calibration` with planes, and with packkv if it is to normalise by
// one.
struct SegmentCodec {
  Codec codec = Codec::kRaw;
  absl::optional<LayerCalibration> calibration;
  packkv::Options packkv;
};

// Of K or of V.
struct TensorSize {
  double paper_bits = 0;  // A value; StoredTensor (stored_tokens.h) says what counts.
  double bytes = 0;       // Its own, and half of what belongs to both.
};

class SegmentSet {
 public:
  // Backend::Supports the codec.
  SegmentSet(const BenchLayer& layer, SegmentCodec codec)
      : layer_(layer), codec_(std::move(codec)) {}

  // RESOURCE_EXHAUSTED as Backend::Allocate. Before all others, once.
  absl::Status Allocate();
  // May be repeated.
  void Encode();
  // What the codec cannot hold is stored exactly, as the daemon does. Adds how many segments that
  // are. After Encode.
  absl::Status ReplaceOutOfRange(int* replaced);

  // Sizes of all segments together.
  void Measure(TensorSize* k, TensorSize* v) const;

  // Null where the codec has none.
  const LayerCalibration* calibration() const {
    return codec_.calibration ? &*codec_.calibration : nullptr;
  }
  const std::vector<TokenRun>& runs() const { return runs_; }

 private:
  absl::Status AllocateSegment(size_t index, Codec codec);

  const BenchLayer& layer_;
  const SegmentCodec codec_;
  std::vector<EncodeJob> jobs_;
  std::vector<TokenRun> runs_;
  Extents extents_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_SEGMENT_SET_H_
