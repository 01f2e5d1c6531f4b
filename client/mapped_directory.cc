#include "client/mapped_directory.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gpu/backend.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// What vector loads of attention rely on.
constexpr uint64_t kExtentAlignment = 256;

// What the extents of a layer hold.
struct LayerKind {
  LayerShape shape;
  DType dtype = DType::kBf16;
  Codec codec = Codec::kRaw;
  bool is_host_memory = true;
};

absl::Status Wrong(const std::string& field, const absl::AlphaNum& value,
                   const absl::AlphaNum& limit) {
  return absl::DataLossError(absl::StrCat("directory.", field, ": ", value, ", must be ", limit));
}

absl::StatusOr<MappedDirectory::Extent> ReadPlace(const std::string& field,
                                                  const v1::MappedExtent& from,
                                                  const RegionLookup& regions) {
  const RegionRef region = regions(from.slab());
  if (region == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("directory.", field, ".slab: ", from.slab(), ", is not mapped"));
  }
  if (from.size_bytes() > region->size_bytes() ||
      from.offset() > region->size_bytes() - from.size_bytes()) {
    return Wrong(field + ".offset",
                 absl::StrCat(from.offset(), " and ", from.size_bytes(), " bytes"),
                 absl::StrCat("inside slab ", from.slab(), " of ", region->size_bytes()));
  }
  if (from.offset() % kExtentAlignment != 0) {
    return Wrong(field + ".offset", from.offset(),
                 absl::StrCat("a multiple of ", kExtentAlignment));
  }
  MappedDirectory::Extent extent;
  extent.run.data = region->data() + from.offset();
  extent.region = region;
  return extent;
}

absl::StatusOr<MappedDirectory::Extent> ReadExact(const std::string& field,
                                                  const v1::MappedExtent& from,
                                                  const LayerShape& shape, DType dtype,
                                                  const RegionLookup& regions) {
  absl::StatusOr<MappedDirectory::Extent> extent = ReadPlace(field, from, regions);
  if (!extent.ok()) return extent;
  if (from.capacity() != kSinkTokens && from.capacity() != kBlockTokens) {
    return Wrong(field + ".capacity", from.capacity(),
                 absl::StrCat(kSinkTokens, " or ", kBlockTokens));
  }
  const int capacity = static_cast<int>(from.capacity());
  if (from.size_bytes() != ExactExtentBytes(shape, dtype, capacity)) {
    return Wrong(field + ".size_bytes", from.size_bytes(),
                 ExactExtentBytes(shape, dtype, capacity));
  }
  extent->run.form = TokenRun::Form::kExact;
  extent->run.capacity = capacity;
  return extent;
}

// In host memory. What a reader relies on is in the bytes, not in the message.
absl::Status CheckPackKv(const std::string& field, const v1::MappedExtent& from,
                         const LayerShape& shape, const std::byte* data) {
  absl::Status valid = ValidateSegment(absl::MakeConstSpan(data, from.size_bytes()));
  if (!valid.ok()) return Wrong(field, valid.message(), "a whole segment");
  const SegmentView view = SegmentView::Of(data);
  if (view.codec() != Codec::kPackKv || view.kv_heads() != shape.kv_heads ||
      view.head_dim() != shape.head_dim || view.tokens() != static_cast<int>(from.capacity())) {
    return Wrong(field,
                 absl::StrCat("a ", CodecName(view.codec()), " segment of ", view.tokens(),
                              " tokens, ", view.kv_heads(), " heads of ", view.head_dim()),
                 absl::StrCat("of packkv, ", from.capacity(), " tokens, ", shape.kv_heads,
                              " heads of ", shape.head_dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<Codec> CodecOf(const std::string& field, v1::MappedForm form, Codec session_codec,
                              const LayerCalibration* calibration) {
  if (form == v1::MAPPED_FORM_RAW) return Codec::kRaw;
  if (form == v1::MAPPED_FORM_PLANES) {
    if (calibration == nullptr) return Wrong(field, "PLANES", "with a calibration");
    return Codec::kPlanes;
  }
  if (form != v1::MAPPED_FORM_PACKKV) {
    return Wrong(field, static_cast<int>(form), "EXACT, PLANES, RAW or PACKKV");
  }
  if (session_codec != Codec::kPackKv) return Wrong(field, "PACKKV", "of the session's codec");
  return Codec::kPackKv;
}

absl::StatusOr<MappedDirectory::Extent> ReadSegment(const std::string& field,
                                                    const v1::MappedExtent& from,
                                                    const LayerKind& kind,
                                                    const LayerCalibration* calibration,
                                                    const RegionLookup& regions) {
  absl::StatusOr<MappedDirectory::Extent> extent = ReadPlace(field, from, regions);
  if (!extent.ok()) return extent;
  const absl::StatusOr<Codec> codec =
      CodecOf(field + ".form", from.form(), kind.codec, calibration);
  if (!codec.ok()) return codec.status();
  if (from.capacity() < kBlockTokens || from.capacity() > kSegmentTokensMax ||
      from.capacity() % kBlockTokens != 0) {
    return Wrong(field + ".capacity", from.capacity(), "a segment's");
  }
  const int capacity = static_cast<int>(from.capacity());
  if (*codec == Codec::kPackKv) {
    // In device memory they are taken as the daemon, which has checked them, says.
    absl::Status status = !kind.is_host_memory
                              ? absl::OkStatus()
                              : CheckPackKv(field, from, kind.shape, extent->run.data);
    if (!status.ok()) return status;
  } else {
    const size_t size_bytes = SegmentBytes(
        kind.shape, kind.dtype, *codec, *codec == Codec::kPlanes ? calibration : nullptr, capacity);
    if (from.size_bytes() != size_bytes)
      return Wrong(field + ".size_bytes", from.size_bytes(), size_bytes);
  }
  extent->run.form = SegmentForm(*codec);
  extent->run.capacity = capacity;
  return extent;
}

absl::StatusOr<MappedDirectory::Extent> ReadExtent(const std::string& field,
                                                   const v1::MappedExtent& from,
                                                   const LayerKind& kind,
                                                   const LayerCalibration* calibration,
                                                   const RegionLookup& regions) {
  absl::StatusOr<MappedDirectory::Extent> extent =
      from.form() == v1::MAPPED_FORM_EXACT ? ReadExact(field, from, kind.shape, kind.dtype, regions)
                                           : ReadSegment(field, from, kind, calibration, regions);
  if (!extent.ok()) return extent;
  if (from.token_count() == 0 || from.first_token() > from.capacity() ||
      from.token_count() > from.capacity() - from.first_token()) {
    return Wrong(field + ".token_count",
                 absl::StrCat(from.token_count(), " from ", from.first_token(), " on"),
                 absl::StrCat("among the ", from.capacity(), " that it has"));
  }
  extent->run.first = static_cast<int>(from.first_token());
  extent->run.count = static_cast<int>(from.token_count());
  return extent;
}

absl::StatusOr<std::shared_ptr<const LayerCalibration>> ReadCalibration(
    const std::string& field, const v1::MappedCalibration& from, const LayerShape& shape) {
  auto calibration = std::make_shared<LayerCalibration>();
  if (from.hash_prefix().size() != calibration->hash_prefix.size()) {
    return Wrong(field + ".hash_prefix", from.hash_prefix().size(),
                 calibration->hash_prefix.size());
  }
  std::copy(from.hash_prefix().begin(), from.hash_prefix().end(), calibration->hash_prefix.begin());
  for (const v1::MappedHead& head : from.heads()) {
    if (head.k_pattern() > 255 || head.v_pattern() > 255) {
      return Wrong(field + ".heads", "a pattern above 255", "at most 255");
    }
    calibration->heads.push_back(
        {{{head.k_order().begin(), head.k_order().end()}, static_cast<uint8_t>(head.k_pattern())},
         {{head.v_order().begin(), head.v_order().end()}, static_cast<uint8_t>(head.v_pattern())}});
  }
  const absl::Status fits = ValidateLayerCalibration(shape, *calibration);
  if (!fits.ok()) return Wrong(field, fits.message(), "a calibration of the layer");
  return std::shared_ptr<const LayerCalibration>(std::move(calibration));
}

absl::StatusOr<MappedDirectory::Layer> ReadLayer(const std::string& field,
                                                 const v1::MappedLayer& from,
                                                 const MappedDirectory::Layer* base,
                                                 uint64_t token_count, const LayerKind& kind,
                                                 const RegionLookup& regions) {
  MappedDirectory::Layer layer;
  layer.first_position = from.first_position();
  if (base != nullptr) layer.calibration = base->calibration;
  if (from.has_calibration()) {
    auto calibration = ReadCalibration(field + ".calibration", from.calibration(), kind.shape);
    if (!calibration.ok()) return calibration.status();
    layer.calibration = *std::move(calibration);
  }
  const size_t base_extents = base == nullptr ? 0 : base->extents.size();
  if (from.dropped_extents() > base_extents ||
      from.kept_extents() > base_extents - from.dropped_extents()) {
    return Wrong(field + ".kept_extents",
                 absl::StrCat(from.kept_extents(), " after ", from.dropped_extents()),
                 absl::StrCat("among the ", base_extents, " of have_version"));
  }
  if (from.kept_extents() > 0) {
    const auto first = base->extents.begin() + from.dropped_extents();
    layer.extents.assign(first, first + from.kept_extents());
  }
  for (int i = 0; i < from.extents_size(); ++i) {
    auto extent = ReadExtent(absl::StrCat(field, ".extents[", i, "]"), from.extents(i), kind,
                             layer.calibration.get(), regions);
    if (!extent.ok()) return extent.status();
    layer.extents.push_back(*std::move(extent));
  }
  uint64_t end = layer.first_position;
  for (const MappedDirectory::Extent& extent : layer.extents) {
    end += static_cast<uint64_t>(extent.run.count);
  }
  if (end != token_count)
    return Wrong(field + ".extents", absl::StrCat("end at ", end), token_count);
  for (int i = 0; i < from.room_size(); ++i) {
    auto extent = ReadExact(absl::StrCat(field, ".room[", i, "]"), from.room(i), kind.shape,
                            kind.dtype, regions);
    if (!extent.ok()) return extent.status();
    layer.room.push_back(*std::move(extent));
  }
  return layer;
}

}  // namespace

absl::StatusOr<MappedShape> MappedShape::Of(const v1::Session& session) {
  MappedShape shape;
  const int dtype = static_cast<int>(session.dtype());
  if (dtype < v1::DTYPE_BF16 || dtype > v1::DTYPE_FP32) {
    return absl::DataLossError(absl::StrCat("session.dtype: ", dtype, ", must be a known one"));
  }
  // The numbers are the same (gpu/shape.h).
  shape.dtype = static_cast<DType>(dtype);
  if (session.codec() == v1::CODEC_PLANES) {
    const int profile = static_cast<int>(session.profile()) - v1::PROFILE_TINY;
    if (profile < 0 || profile >= kProfileCount) {
      return absl::DataLossError(absl::StrCat(
          "session.profile: ", static_cast<int>(session.profile()), ", must be one of planes"));
    }
    shape.codec = Codec::kPlanes;
    shape.profile = static_cast<Profile>(profile);
  } else if (session.codec() == v1::CODEC_PACKKV) {
    shape.codec = Codec::kPackKv;
  }
  for (const v1::LayerShape& from : session.layers()) {
    const bool good_heads = from.kv_heads() >= 1 && from.kv_heads() <= kSegmentKvHeadsMax &&
                            from.query_heads() % from.kv_heads() == 0 &&
                            from.query_heads() / from.kv_heads() >= 1 &&
                            from.query_heads() / from.kv_heads() <= kQueryHeadsPerKvHeadMax;
    const bool good_dim = from.head_dim() == 64 || from.head_dim() == 128 || from.head_dim() == 256;
    if (!good_heads || !good_dim ||
        from.sliding_window() > static_cast<uint32_t>(std::numeric_limits<int>::max())) {
      return absl::DataLossError(absl::StrCat("session.layers: ", from.kv_heads(), " KV heads, ",
                                              from.query_heads(), " query heads of ",
                                              from.head_dim(), ", must be a layer's shape"));
    }
    LayerShape layer;
    layer.kv_heads = static_cast<int>(from.kv_heads());
    layer.query_heads = static_cast<int>(from.query_heads());
    layer.head_dim = static_cast<int>(from.head_dim());
    layer.soft_cap = from.soft_cap();
    layer.sliding_window = static_cast<int>(from.sliding_window());
    shape.layers.push_back(layer);
  }
  return shape;
}

std::vector<FreeSlots> MappedDirectory::Layer::free_slots() const {
  std::vector<FreeSlots> slots;
  // Exact extents that are not full are the last of a layer.
  if (!extents.empty() && extents.back().run.form == TokenRun::Form::kExact) {
    const TokenRun& run = extents.back().run;
    const int first = run.first + run.count;
    if (first < run.capacity) {
      slots.push_back(
          {const_cast<std::byte*>(run.data), run.capacity, first, run.capacity - first});
    }
  }
  for (const Extent& extent : room) {
    slots.push_back(
        {const_cast<std::byte*>(extent.run.data), extent.run.capacity, 0, extent.run.capacity});
  }
  return slots;
}

std::vector<TokenRun> MappedDirectory::Layer::RunsWith(uint64_t more) const {
  std::vector<TokenRun> runs;
  runs.reserve(extents.size() + room.size());
  for (const Extent& extent : extents) runs.push_back(extent.run);
  for (const FreeSlots& slots : free_slots()) {
    if (more == 0) break;
    const int count =
        static_cast<int>(std::min<uint64_t>(more, static_cast<uint64_t>(slots.count)));
    if (slots.first_slot > 0) {
      runs.back().count += count;
    } else {
      runs.push_back({TokenRun::Form::kExact, slots.extent, slots.capacity, 0, count});
    }
    more -= static_cast<uint64_t>(count);
  }
  return runs;
}

uint64_t MappedDirectory::room_tokens() const {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  for (const Layer& layer : layers) {
    uint64_t tokens = 0;
    for (const FreeSlots& slots : layer.free_slots()) tokens += static_cast<uint64_t>(slots.count);
    least = std::min(least, tokens);
  }
  return layers.empty() ? 0 : least;
}

absl::StatusOr<std::shared_ptr<MappedDirectory>> MappedDirectory::Read(
    const v1::MappedDirectory& message, const MappedDirectory* base, const MappedShape& shape,
    const RegionLookup& regions) {
  auto directory = std::make_shared<MappedDirectory>();
  directory->version = message.version();
  directory->generation = message.generation();
  directory->token_count = message.token_count();
  if (message.layers_size() != static_cast<int>(shape.layers.size())) {
    return Wrong("layers", message.layers_size(), shape.layers.size());
  }
  for (int i = 0; i < message.layers_size(); ++i) {
    const size_t index = static_cast<size_t>(i);
    absl::StatusOr<Layer> layer =
        ReadLayer(absl::StrCat("layers[", i, "]"), message.layers(i),
                  base == nullptr ? nullptr : &base->layers[index], message.token_count(),
                  {shape.layers[index], shape.dtype, shape.codec, shape.is_host_memory}, regions);
    if (!layer.ok()) return layer.status();
    directory->layers.push_back(*std::move(layer));
  }
  return directory;
}

}  // namespace kvdepot
