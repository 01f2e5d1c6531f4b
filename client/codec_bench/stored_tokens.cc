#include "client/codec_bench/stored_tokens.h"

#include <utility>

#include "client/codec_bench/repeats.h"
#include "client/kivi_reference.h"
#include "gpu/packkv/body.h"
#include "gpu/planes/format.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

constexpr char kTenant[] = "bench";

size_t SealedValues(const BenchLayer& layer) {
  return static_cast<size_t>(layer.layout().sealed_tokens()) * layer.layer().shape.row_values();
}

// Segments in the backend's memory, as a session has them.
class BackendSegments {
 public:
  BackendSegments(const BenchLayer& layer, Codec codec, LayerCalibration calibration)
      : layer_(layer), codec_(codec), calibration_(std::move(calibration)) {}

  absl::StatusOr<StoredTokens> Store() {
    for (size_t i = 0; i < layer_.layout().segments.size(); ++i) {
      const absl::Status status = Allocate(i, codec_);
      if (!status.ok()) return status;
    }
    StoredTokens stored;
    stored.encode_seconds = SecondsOf([&] { Encode(); });
    const absl::Status replaced = ReplaceOutOfRange(&stored.raw_segments);
    if (!replaced.ok()) return replaced;
    for (const EncodeJob& job : jobs_) {
      const absl::Status counted = Count(job, &stored);
      if (!counted.ok()) return counted;
    }
    stored.k.paper_bits /= layer_.layout().sealed_tokens();
    stored.v.paper_bits /= layer_.layout().sealed_tokens();
    const absl::Status decoded = Decode(&stored);
    if (!decoded.ok()) return decoded;
    absl::StatusOr<std::vector<float>> attention = layer_.Attend(runs_, calibration());
    if (!attention.ok()) return attention.status();
    stored.attention = *std::move(attention);
    const absl::Status health = layer_.backend()->health();
    if (!health.ok()) return health;
    return stored;
  }

 private:
  const LayerCalibration* calibration() const {
    return codec_ == Codec::kPlanes ? &calibration_ : nullptr;
  }

  absl::Status Allocate(size_t index, Codec codec) {
    EncodeJob job;
    job.source = layer_.SourceOf(index);
    job.codec = codec;
    job.calibration = codec == Codec::kPlanes ? &calibration_ : nullptr;
    const int tokens = layer_.layout().segments[index];
    const size_t bytes =
        SegmentBytes(job.source.shape, job.source.dtype, codec, job.calibration, tokens);
    absl::StatusOr<std::unique_ptr<Extent>> extent =
        layer_.backend()->Allocate(kTenant, ExtentUse::kSealed, bytes);
    if (!extent.ok()) return extent.status();
    job.segment = (*extent)->data();
    const TokenRun run = {SegmentForm(codec), job.segment, tokens, 0, tokens};
    if (index == jobs_.size()) {
      jobs_.push_back(job);
      runs_.push_back(run);
      extents_.push_back(*std::move(extent));
    } else {
      jobs_[index] = job;
      runs_[index] = run;
      extents_[index] = *std::move(extent);
    }
    return absl::OkStatus();
  }

  // In batches of the size that the backend asks for.
  void Encode() {
    const absl::Span<EncodeJob> all = absl::MakeSpan(jobs_);
    const DumpLayer& layer = layer_.layer();
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

  // As the daemon does: what the codec cannot hold is stored exactly.
  absl::Status ReplaceOutOfRange(int* replaced) {
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (jobs_[i].in_range) continue;
      const absl::Status status = Allocate(i, Codec::kRaw);
      if (!status.ok()) return status;
      layer_.backend()->Encode(absl::MakeSpan(&jobs_[i], 1));
      ++*replaced;
    }
    return absl::OkStatus();
  }

  // Adds what the segment takes; paper_bits are those of all tokens together.
  absl::Status Count(const EncodeJob& job, StoredTokens* stored) const {
    const LayerShape& shape = layer_.layer().shape;
    const int tokens = static_cast<int>(job.source.blocks.size()) * kBlockTokens;
    const size_t size_bytes =
        SegmentBytes(shape, job.source.dtype, job.codec, job.calibration, tokens);
    double k_only = 0;
    double v_only = 0;
    for (int head = 0; head < shape.kv_heads; ++head) {
      if (job.codec == Codec::kRaw) {
        stored->k.paper_bits += 8.0 * DTypeBytes(job.source.dtype) * tokens / shape.kv_heads;
        stored->v.paper_bits += 8.0 * DTypeBytes(job.source.dtype) * tokens / shape.kv_heads;
        continue;
      }
      const HeadLayout& layout = job.calibration->heads[static_cast<size_t>(head)];
      const planes::Pattern k = planes::KeyPattern(shape.head_dim, layout.k.pattern);
      const planes::Pattern v = planes::ValuePattern(shape.head_dim, layout.v.pattern);
      stored->k.paper_bits += static_cast<double>(k.total()) / k.groups * tokens / shape.kv_heads;
      stored->v.paper_bits += static_cast<double>(v.total()) / v.groups * tokens / shape.kv_heads;
      const double blocks = static_cast<double>(job.source.blocks.size());
      k_only += blocks * static_cast<double>(planes::GroupBytes(k.total()));
      v_only += blocks * static_cast<double>(planes::GroupBytes(v.total()));
    }
    const double shared = static_cast<double>(size_bytes) - k_only - v_only;
    stored->k.bytes += k_only + shared / 2;
    stored->v.bytes += v_only + shared / 2;
    return absl::OkStatus();
  }

  absl::Status Decode(StoredTokens* stored) {
    Backend* backend = layer_.backend();
    const DumpLayer& layer = layer_.layer();
    const size_t values = SealedValues(layer_);
    for (StoredTensor* tensor : {&stored->k, &stored->v}) tensor->values.resize(values);
    backend->Decode(layer.shape, layer.dtype, calibration(), runs_, DType::kFp32,
                    MemorySpace::kHost, reinterpret_cast<std::byte*>(stored->k.values.data()),
                    reinterpret_cast<std::byte*>(stored->v.values.data()));
    // Into the device's memory: what the bus costs is not the codec's.
    Extents decoded;
    for (int tensor = 0; tensor < 2; ++tensor) {
      absl::StatusOr<std::unique_ptr<Extent>> extent =
          backend->Allocate(kTenant, ExtentUse::kTail, values * DTypeBytes(layer.dtype));
      if (!extent.ok()) return extent.status();
      decoded.push_back(*std::move(extent));
    }
    stored->decode_seconds = SecondsOf([&] {
      backend->Decode(layer.shape, layer.dtype, calibration(), runs_, layer.dtype,
                      MemorySpace::kDevice, decoded[0]->data(), decoded[1]->data());
      backend->Synchronize();
    });
    return absl::OkStatus();
  }

  const BenchLayer& layer_;
  const Codec codec_;
  const LayerCalibration calibration_;
  std::vector<EncodeJob> jobs_;
  std::vector<TokenRun> runs_;
  Extents extents_;
};

absl::StatusOr<StoredTokens> Store(const RawSetting&, const BenchLayer& layer,
                                   const ProfileCalibrations*) {
  return BackendSegments(layer, Codec::kRaw, {}).Store();
}

absl::StatusOr<StoredTokens> Store(const PlanesSetting& setting, const BenchLayer& layer,
                                   const ProfileCalibrations* calibrations) {
  if (setting.calibration == PlanesSetting::Calibration::kFile) {
    const auto profile = static_cast<size_t>(setting.profile);
    return BackendSegments(layer, Codec::kPlanes, (*calibrations)[profile]).Store();
  }
  std::vector<float> second_moments;
  if (setting.calibration == PlanesSetting::Calibration::kOwnWithQueries) {
    second_moments = QuerySecondMoments(layer.layer());
  }
  const CalibrationJob job = {layer.SourceOf(0), setting.profile, second_moments};
  std::vector<LayerCalibration> own =
      layer.backend()->DeriveCalibrations(absl::MakeConstSpan(&job, 1));
  return BackendSegments(layer, Codec::kPlanes, std::move(own.front())).Store();
}

// Values by a computation on the CPU rather than by the backend: attended over as they decode.
absl::StatusOr<StoredTokens> Attended(StoredTokens stored, const BenchLayer& layer) {
  absl::StatusOr<std::vector<float>> attention =
      layer.AttendValues(stored.k.values, stored.v.values);
  if (!attention.ok()) return attention.status();
  stored.attention = *std::move(attention);
  return stored;
}

absl::StatusOr<StoredTokens> Store(const KiviSetting& setting, const BenchLayer& layer,
                                   const ProfileCalibrations*) {
  KvArrays kv = layer.layer().kv;
  QuantizeLikeKivi(kSinkTokens, layer.layout().sealed_end(), setting.bits, &kv);
  const size_t first = kv.At(kSinkTokens, 0);
  const size_t last = kv.At(layer.layout().sealed_end(), 0);
  const double bits = KiviBitsPerValue(setting.bits);
  StoredTokens stored;
  stored.k.values.assign(kv.k.data() + first, kv.k.data() + last);
  stored.v.values.assign(kv.v.data() + first, kv.v.data() + last);
  for (StoredTensor* tensor : {&stored.k, &stored.v}) {
    tensor->paper_bits = bits;
    tensor->bytes = bits / 8 * static_cast<double>(last - first);
  }
  return Attended(std::move(stored), layer);
}

// The blocks of a segment in the host's memory.
class HostBlocks {
 public:
  HostBlocks(const BenchLayer& layer, size_t index) : source_(layer.SourceOf(index)) {
    const size_t bytes = ExactExtentBytes(source_.shape, source_.dtype, kBlockTokens);
    bytes_.resize(source_.blocks.size() * bytes);
    for (size_t i = 0; i < source_.blocks.size(); ++i) {
      layer.backend()->ReadBytes(source_.blocks[i], bytes, bytes_.data() + i * bytes);
      blocks_.push_back(bytes_.data() + i * bytes);
    }
  }
  SealBlocks source() const { return {source_.shape, source_.dtype, blocks_}; }

 private:
  SealBlocks source_;
  std::vector<std::byte> bytes_;
  std::vector<const std::byte*> blocks_;
};

double RoundBytesOf(const packkv::BodyView& body, const LayerShape& shape, int blocks,
                    packkv::Tensor tensor) {
  size_t bytes = 0;
  for (int block = 0; block < blocks; ++block) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      for (int r = 0; r < body.rounds(); ++r) bytes += body.round(block, head, tensor, r).size();
    }
  }
  return static_cast<double>(bytes);
}

absl::StatusOr<StoredTokens> Store(const PackkvSetting& setting, const BenchLayer& layer,
                                   const ProfileCalibrations*) {
  const LayerShape& shape = layer.layer().shape;
  const size_t head_dim = static_cast<size_t>(shape.head_dim);
  std::vector<HostBlocks> sources;
  for (size_t i = 0; i < layer.layout().segments.size(); ++i) sources.emplace_back(layer, i);
  std::vector<absl::optional<std::vector<std::byte>>> bodies(sources.size());
  StoredTokens stored;
  stored.encode_seconds = SecondsOf([&] {
    for (size_t i = 0; i < sources.size(); ++i) {
      bodies[i] = packkv::EncodeBody(sources[i].source(), setting.options);
    }
  });
  for (StoredTensor* tensor : {&stored.k, &stored.v}) tensor->values.resize(SealedValues(layer));

  std::vector<packkv::BodyView> views;
  for (size_t i = 0; i < sources.size(); ++i) {
    const int blocks = layer.layout().segments[i] / kBlockTokens;
    if (!bodies[i]) return absl::OutOfRangeError("values leave the range of packkv");
    const absl::StatusOr<packkv::BodyView> view =
        packkv::BodyView::Validate(*bodies[i], shape.kv_heads, shape.head_dim, blocks);
    if (!view.ok()) return view.status();
    views.push_back(*view);
    const double tokens = layer.layout().segments[i];
    stored.k.paper_bits += tokens * view->PaperBits(packkv::Tensor::kKey);
    stored.v.paper_bits += tokens * view->PaperBits(packkv::Tensor::kValue);
    const double k_only = RoundBytesOf(*view, shape, blocks, packkv::Tensor::kKey);
    const double v_only = RoundBytesOf(*view, shape, blocks, packkv::Tensor::kValue);
    const double shared = static_cast<double>(SegmentHeaderBytes(shape.kv_heads)) +
                          static_cast<double>(bodies[i]->size()) - k_only - v_only;
    stored.k.bytes += k_only + shared / 2;
    stored.v.bytes += v_only + shared / 2;
  }
  stored.k.paper_bits /= layer.layout().sealed_tokens();
  stored.v.paper_bits /= layer.layout().sealed_tokens();

  stored.decode_seconds = SecondsOf([&] {
    size_t first = 0;
    for (size_t i = 0; i < views.size(); ++i) {
      const size_t tokens = static_cast<size_t>(layer.layout().segments[i]);
      std::vector<float> head_values(tokens * head_dim);
      for (int head = 0; head < shape.kv_heads; ++head) {
        for (const auto tensor : {packkv::Tensor::kKey, packkv::Tensor::kValue}) {
          views[i].Decode(head, tensor, 0, absl::MakeSpan(head_values));
          std::vector<float>& to =
              tensor == packkv::Tensor::kKey ? stored.k.values : stored.v.values;
          for (size_t t = 0; t < tokens; ++t) {
            std::copy_n(
                &head_values[t * head_dim], head_dim,
                &to[(first + t) * shape.row_values() + static_cast<size_t>(head) * head_dim]);
          }
        }
      }
      first += tokens;
    }
  });
  return Attended(std::move(stored), layer);
}

}  // namespace

absl::StatusOr<StoredTokens> StoreTokens(const CodecSetting& setting, const BenchLayer& layer,
                                         const ProfileCalibrations* calibrations) {
  return std::visit([&](const auto& chosen) { return Store(chosen, layer, calibrations); },
                    setting.setting);
}

std::vector<float> QuerySecondMoments(const DumpLayer& layer) {
  const std::vector<float> q = FloatsOf(layer.dtype, layer.q);
  const size_t head_dim = static_cast<size_t>(layer.shape.head_dim);
  const size_t group = static_cast<size_t>(layer.shape.queries_per_kv_head()) * head_dim;
  const size_t row = static_cast<size_t>(layer.shape.query_heads) * head_dim;
  std::vector<double> sums(layer.shape.row_values());
  for (size_t i = 0; i < q.size(); ++i) {
    const size_t kv_head = i % row / group;
    sums[kv_head * head_dim + i % head_dim] += static_cast<double>(q[i]) * q[i];
  }
  const double count = static_cast<double>(q.size()) / static_cast<double>(sums.size());
  std::vector<float> moments;
  moments.reserve(sums.size());
  for (const double sum : sums) moments.push_back(static_cast<float>(sum / count));
  return moments;
}

}  // namespace kvdepot
