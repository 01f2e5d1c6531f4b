#include "client/codec_bench/stored_tokens.h"

#include <utility>

#include "client/codec_bench/repeats.h"
#include "client/kivi_reference.h"

namespace kvdepot {
namespace {

constexpr char kTenant[] = "bench";

Codec CodecOf(const RawSetting&) { return Codec::kRaw; }
Codec CodecOf(const PlanesSetting&) { return Codec::kPlanes; }
Codec CodecOf(const PackkvSetting&) { return Codec::kPackKv; }
// A reference, not a codec of the backend; what it decodes to is attended over as exact values.
Codec CodecOf(const KiviSetting&) { return Codec::kRaw; }

// Fills in the values, and times decoding into the device's memory: what the bus costs is not the
// codec's.
absl::Status Decode(const BenchLayer& bench_layer, const SegmentSet& segments,
                    StoredTokens* stored) {
  Backend* backend = bench_layer.backend();
  const DumpLayer& layer = bench_layer.layer();
  const size_t values =
      static_cast<size_t>(bench_layer.layout().sealed_tokens()) * layer.shape.row_values();
  for (StoredTensor* tensor : {&stored->k, &stored->v}) tensor->values.resize(values);
  backend->Decode(layer.shape, layer.dtype, segments.calibration(), segments.runs(), DType::kFp32,
                  MemorySpace::kHost, reinterpret_cast<std::byte*>(stored->k.values.data()),
                  reinterpret_cast<std::byte*>(stored->v.values.data()));
  Extents decoded;
  for (int tensor = 0; tensor < 2; ++tensor) {
    absl::StatusOr<std::unique_ptr<Extent>> extent =
        backend->Allocate(kTenant, ExtentUse::kTail, values * DTypeBytes(layer.dtype));
    if (!extent.ok()) return extent.status();
    decoded.push_back(*std::move(extent));
  }
  stored->decode_seconds = SecondsOf([&] {
    backend->Decode(layer.shape, layer.dtype, segments.calibration(), segments.runs(), layer.dtype,
                    MemorySpace::kDevice, decoded[0]->data(), decoded[1]->data());
    backend->Synchronize();
  });
  return absl::OkStatus();
}

absl::StatusOr<StoredTokens> StoreBy(SegmentCodec codec, const BenchLayer& layer) {
  SegmentSet segments(layer, std::move(codec));
  absl::Status status = segments.Allocate();
  if (!status.ok()) return status;
  StoredTokens stored;
  stored.encode_seconds = SecondsOf([&] { segments.Encode(); });
  status = segments.ReplaceOutOfRange(&stored.raw_segments);
  if (!status.ok()) return status;
  segments.Measure(&stored.k.size, &stored.v.size);
  status = Decode(layer, segments, &stored);
  if (!status.ok()) return status;
  absl::StatusOr<std::vector<float>> attention =
      layer.Attend(segments.runs(), segments.calibration());
  if (!attention.ok()) return attention.status();
  stored.attention = *std::move(attention);
  status = layer.backend()->health();
  if (!status.ok()) return status;
  return stored;
}

absl::StatusOr<StoredTokens> Store(const RawSetting&, const BenchLayer& layer,
                                   const ProfileCalibrations*) {
  return StoreBy({Codec::kRaw, {}, {}}, layer);
}

absl::StatusOr<StoredTokens> Store(const PlanesSetting& setting, const BenchLayer& layer,
                                   const ProfileCalibrations* calibrations) {
  if (setting.calibration == PlanesSetting::Calibration::kFile) {
    const auto profile = static_cast<size_t>(setting.profile);
    return StoreBy({Codec::kPlanes, (*calibrations)[profile], {}}, layer);
  }
  std::vector<float> second_moments;
  if (setting.calibration == PlanesSetting::Calibration::kOwnWithQueries) {
    second_moments = QuerySecondMoments(layer.layer());
  }
  const CalibrationJob job = {layer.SourceOf(0), setting.profile, second_moments};
  std::vector<LayerCalibration> own =
      layer.backend()->DeriveCalibrations(absl::MakeConstSpan(&job, 1));
  return StoreBy({Codec::kPlanes, std::move(own.front()), {}}, layer);
}

absl::StatusOr<StoredTokens> Store(const PackkvSetting& setting, const BenchLayer& layer,
                                   const ProfileCalibrations* calibrations) {
  absl::optional<LayerCalibration> calibration;
  // Of every profile the same: packkv has none.
  if (setting.calibrated) calibration = calibrations->front();
  return StoreBy({Codec::kPackKv, std::move(calibration), setting.options}, layer);
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
    tensor->size.paper_bits = bits;
    tensor->size.bytes = bits / 8 * static_cast<double>(last - first);
  }
  absl::StatusOr<std::vector<float>> attention =
      layer.AttendValues(stored.k.values, stored.v.values);
  if (!attention.ok()) return attention.status();
  stored.attention = *std::move(attention);
  return stored;
}

packkv::Options PackkvOptionsOf(const CodecSetting& setting) {
  const auto* packkv = std::get_if<PackkvSetting>(&setting.setting);
  return packkv == nullptr ? packkv::Options{} : packkv->options;
}

}  // namespace

absl::Status CheckSupport(const CodecSetting& setting, const LayerShape& shape, DType dtype,
                          const Backend& backend) {
  const Codec codec =
      std::visit([](const auto& chosen) { return CodecOf(chosen); }, setting.setting);
  return backend.Supports(shape, dtype, codec, PackkvOptionsOf(setting));
}

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
