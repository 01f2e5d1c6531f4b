// A layer of a dump in a backend's memory, as a session holds it that got it as one prompt: what
// codecs are tried on.
//
// Not thread-safe. The backend outlives it.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_BENCH_LAYER_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_BENCH_LAYER_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/codec_bench/kv_dump.h"
#include "client/codec_bench/prompt_layout.h"
#include "gpu/backend.h"

namespace kvdepot {

using Extents = std::vector<std::unique_ptr<Extent>>;

class BenchLayer {
 public:
  // Asks `query_count` of the layer's queries at most, drawn by a fixed seed. RESOURCE_EXHAUSTED as
  // Backend::Allocate. `layer` has kPromptTokensMin tokens or more and outlives this.
  static absl::StatusOr<std::unique_ptr<BenchLayer>> Create(Backend* backend,
                                                            const DumpLayer& layer,
                                                            int query_count);

  const DumpLayer& layer() const { return layer_; }
  const PromptLayout& layout() const { return layout_; }
  Backend* backend() const { return backend_; }
  // Of the layer: those that are asked, in order.
  const std::vector<int>& queries() const { return queries_; }
  float scale() const { return scale_; }

  // Of segment `index` of the layout.
  SealBlocks SourceOf(size_t index) const;

  // Attention of every asked query over sinks, `sealed` and tail: [query][query_head][channel].
  // `sealed` covers layout().sealed_tokens() tokens. Errors as Backend::Attend.
  absl::StatusOr<std::vector<float>> Attend(absl::Span<const TokenRun> sealed,
                                            const LayerCalibration* calibration) const;
  // The same where the sealed tokens are these fp32 values, [sealed token][kv_head][channel].
  absl::StatusOr<std::vector<float>> AttendValues(absl::Span<const float> k,
                                                  absl::Span<const float> v) const;

 private:
  BenchLayer(Backend* backend, const DumpLayer& layer, int query_count);

  absl::StatusOr<Extents> Store(DType dtype, const std::byte* k, const std::byte* v, int tokens,
                                int extent_tokens) const;
  absl::StatusOr<std::vector<float>> AttendRuns(DType dtype, absl::Span<const TokenRun> runs,
                                                const LayerCalibration* calibration,
                                                const std::vector<std::byte>& q) const;

  Backend* const backend_;
  const DumpLayer& layer_;
  const PromptLayout layout_;
  const std::vector<int> queries_;
  const float scale_;
  std::vector<std::byte> q_;       // In the layer's dtype.
  std::vector<std::byte> q_fp32_;  // The same numbers.
  Extents sinks_;
  Extents blocks_;  // 64 tokens each, those that are sealed.
  Extents tail_;
  std::vector<const std::byte*> block_data_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_BENCH_LAYER_H_
