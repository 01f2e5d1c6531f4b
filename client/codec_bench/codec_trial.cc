#include "client/codec_bench/codec_trial.h"

#include <algorithm>
#include <cmath>

#include "client/exact_attention.h"

namespace kvdepot {
namespace {

// Root mean square of the difference over that of `exact`; the numbers of both are as many.
template <class Exact>
double RelativeRms(absl::Span<const float> values, absl::Span<const Exact> exact) {
  double difference = 0;
  double length = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double d = static_cast<double>(values[i]) - exact[i];
    difference += d * d;
    length += static_cast<double>(exact[i]) * exact[i];
  }
  return std::sqrt(difference / length);
}

// The sealed tokens of K or V.
absl::Span<const float> SealedOf(const std::vector<float>& values, const BenchLayer& layer) {
  const KvArrays& kv = layer.layer().kv;
  const size_t first = kv.At(kSinkTokens, 0);
  const size_t last = kv.At(layer.layout().sealed_end(), 0);
  return absl::MakeConstSpan(values).subspan(first, last - first);
}

TensorFigures FiguresOf(const StoredTensor& stored, absl::Span<const float> exact) {
  TensorFigures figures;
  figures.paper_bits = stored.size.paper_bits;
  figures.bits = 8 * stored.size.bytes / static_cast<double>(exact.size());
  figures.error = RelativeRms(stored.values, exact);
  return figures;
}

}  // namespace

std::vector<double> ExactOutputs(const BenchLayer& layer, WorkerPool* pool) {
  const DumpLayer& source = layer.layer();
  const size_t row = static_cast<size_t>(source.shape.query_heads) * source.shape.head_dim;
  std::vector<double> outputs(layer.queries().size() * row);
  pool->ParallelFor(static_cast<int>(layer.queries().size()), [&](int index, int) {
    const int query = layer.queries()[static_cast<size_t>(index)];
    const std::vector<float> q = FloatsOf(source.dtype, source.QueryBytes(query));
    const ExactOutput exact = ExactAttention(source.kv, q, layer.scale());
    std::copy(exact.output.begin(), exact.output.end(),
              outputs.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(index) * row));
  });
  return outputs;
}

absl::StatusOr<TrialFigures> TryCodec(const CodecSetting& setting, const BenchLayer& layer,
                                      const ProfileCalibrations* calibrations,
                                      const std::vector<double>& exact_outputs) {
  const absl::StatusOr<StoredTokens> stored = StoreTokens(setting, layer, calibrations);
  if (!stored.ok()) return stored.status();
  const DumpLayer& source = layer.layer();
  const absl::Span<const float> exact_k = SealedOf(source.kv.k, layer);
  const absl::Span<const float> exact_v = SealedOf(source.kv.v, layer);

  TrialFigures figures;
  figures.k = FiguresOf(stored->k, exact_k);
  figures.v = FiguresOf(stored->v, exact_v);
  figures.bits = (figures.k.bits + figures.v.bits) / 2;
  const size_t exact_bytes =
      ExactExtentBytes(source.shape, source.dtype, layer.layout().exact_slots());
  figures.session_bits =
      8 * (stored->k.size.bytes + stored->v.size.bytes + static_cast<double>(exact_bytes)) /
      static_cast<double>(2 * source.kv.k.size());
  const absl::Span<const double> exact = exact_outputs;
  figures.attention_error = RelativeRms(stored->attention, exact);
  figures.attention_error_mean = RelativeError(stored->attention, exact, source.shape.head_dim);

  const absl::StatusOr<std::vector<float>> k_alone = layer.AttendValues(stored->k.values, exact_v);
  if (!k_alone.ok()) return k_alone.status();
  figures.k.attention_error = RelativeRms(*k_alone, exact);
  const absl::StatusOr<std::vector<float>> v_alone = layer.AttendValues(exact_k, stored->v.values);
  if (!v_alone.ok()) return v_alone.status();
  figures.v.attention_error = RelativeRms(*v_alone, exact);

  figures.encode_seconds = stored->encode_seconds;
  figures.decode_seconds = stored->decode_seconds;
  figures.raw_segments = stored->raw_segments;
  return figures;
}

}  // namespace kvdepot
