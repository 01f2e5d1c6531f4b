#include "server/services/session_convert.h"

#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/services/field_error.h"
#include "server/session_spec.h"

namespace kvdepot {
namespace {

// Ids are the daemon's own and short; a longer one is not looked up (nor logged).
constexpr int kSessionIdBytesMax = 64;
// Far beyond any use, and far from where times overflow.
constexpr absl::Duration kTimeToLiveMax = absl::Hours(24 * 3650);

absl::Status CheckText(absl::string_view field, absl::string_view text, int bytes_min,
                       int bytes_max) {
  if (text.size() >= static_cast<size_t>(bytes_min) &&
      text.size() <= static_cast<size_t>(bytes_max))
    return absl::OkStatus();
  return FieldError(field, absl::StrCat(text.size(), " bytes"),
                    absl::StrCat(bytes_min, "..", bytes_max));
}

// Numbers that no int holds are beyond `range` as well.
absl::Status ReadInt(absl::string_view field, uint32_t from, absl::string_view range, int* to) {
  if (from > std::numeric_limits<int>::max()) return FieldError(field, from, range);
  *to = static_cast<int>(from);
  return absl::OkStatus();
}

absl::StatusOr<LayerShape> ToLayerShape(const v1::LayerShape& from) {
  LayerShape shape;
  absl::Status status = ReadInt("kv_heads", from.kv_heads(), kKvHeadsRange, &shape.kv_heads);
  if (status.ok()) {
    status = ReadInt("query_heads", from.query_heads(), QueryHeadsRange(from.kv_heads()),
                     &shape.query_heads);
  }
  if (status.ok()) status = ReadInt("head_dim", from.head_dim(), kHeadDimRange, &shape.head_dim);
  if (status.ok()) {
    status = ReadInt("sliding_window", from.sliding_window(), kSlidingWindowRange,
                     &shape.sliding_window);
  }
  if (!status.ok()) return status;
  shape.soft_cap = from.soft_cap();
  return shape;
}

absl::Status ReadLayers(const v1::CreateSessionRequest& request, SessionSpec& spec) {
  spec.layers.reserve(static_cast<size_t>(request.layers_size()));
  for (int i = 0; i < request.layers_size(); ++i) {
    absl::StatusOr<LayerShape> shape = ToLayerShape(request.layers(i));
    if (!shape.ok()) return Inside(absl::StrCat("layers[", i, "]"), shape.status());
    spec.layers.push_back(*shape);
  }
  return absl::OkStatus();
}

absl::Status ReadPlanesProfile(v1::Profile profile, SessionSpec& spec) {
  switch (profile) {
    case v1::PROFILE_TINY:
      spec.profile = Profile::kTiny;
      return absl::OkStatus();
    case v1::PROFILE_UNSPECIFIED:
    case v1::PROFILE_COMPACT:
      spec.profile = Profile::kCompact;
      return absl::OkStatus();
    case v1::PROFILE_BALANCED:
      spec.profile = Profile::kBalanced;
      return absl::OkStatus();
    case v1::PROFILE_FINE:
      spec.profile = Profile::kFine;
      return absl::OkStatus();
    default:
      return FieldError("profile", static_cast<int>(profile),
                        "TINY, COMPACT, BALANCED or FINE with codec PLANES");
  }
}

// Ranges of numbers are the engine's to check.
absl::Status ReadPackKv(const v1::PackKvOptions& from, packkv::Options& options) {
  options = packkv::DefaultOptions(from.normalize());
  if (from.k_relative_scale() != 0) options.k_relative_scale = from.k_relative_scale();
  if (from.v_relative_scale() != 0) options.v_relative_scale = from.v_relative_scale();
  if (from.pack_tokens() != 0) {
    absl::Status status =
        ReadInt("pack_tokens", from.pack_tokens(), packkv::kPackTokensRange, &options.pack_tokens);
    if (!status.ok()) return status;
  }
  switch (from.repacking()) {
    case v1::PACK_KV_REPACKING_UNSPECIFIED:
      return absl::OkStatus();
    case v1::PACK_KV_REPACKING_NONE:
    case v1::PACK_KV_REPACKING_MEDIAN:
    case v1::PACK_KV_REPACKING_GREEDY:
      // The numbers are the same.
      options.repacking = static_cast<packkv::Repacking>(from.repacking());
      return absl::OkStatus();
    default:
      return FieldError("repacking", static_cast<int>(from.repacking()), "NONE, MEDIAN or GREEDY");
  }
}

absl::Status ReadCodec(const v1::CreateSessionRequest& request, SessionSpec& spec) {
  if (request.has_packkv() && request.codec() != v1::CODEC_PACKKV) {
    return FieldError("packkv", "set", "unset but with codec PACKKV");
  }
  switch (request.codec()) {
    case v1::CODEC_UNSPECIFIED:
    case v1::CODEC_PLANES:
      spec.codec = Codec::kPlanes;
      return ReadPlanesProfile(request.profile(), spec);
    case v1::CODEC_RAW:
      spec.codec = Codec::kRaw;
      if (request.profile() == v1::PROFILE_UNSPECIFIED || request.profile() == v1::PROFILE_EXACT) {
        return absl::OkStatus();
      }
      return FieldError("profile", static_cast<int>(request.profile()), "EXACT with codec RAW");
    case v1::CODEC_PACKKV:
      spec.codec = Codec::kPackKv;
      if (request.profile() != v1::PROFILE_UNSPECIFIED) {
        return FieldError("profile", static_cast<int>(request.profile()),
                          "unspecified with codec PACKKV");
      }
      return Inside("packkv", ReadPackKv(request.packkv(), spec.packkv));
    default:
      return FieldError("codec", static_cast<int>(request.codec()), "RAW, PLANES or PACKKV");
  }
}

absl::Status ReadTimeToLive(const v1::CreateSessionRequest& request, SessionSpec& spec) {
  if (!request.has_time_to_live()) return absl::OkStatus();
  const google::protobuf::Duration& from = request.time_to_live();
  const absl::Duration time = absl::Seconds(from.seconds()) + absl::Nanoseconds(from.nanos());
  if (time <= absl::ZeroDuration() || time > kTimeToLiveMax) {
    return FieldError(
        "time_to_live", absl::FormatDuration(time),
        absl::StrCat("more than 0 and at most ", absl::FormatDuration(kTimeToLiveMax)));
  }
  spec.time_to_live = time;
  return absl::OkStatus();
}

v1::Dtype ToProto(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return v1::DTYPE_BF16;
    case DType::kFp16:
      return v1::DTYPE_FP16;
    case DType::kFp32:
      return v1::DTYPE_FP32;
  }
  return v1::DTYPE_UNSPECIFIED;
}

v1::Profile ToProto(Codec codec, Profile profile) {
  if (codec == Codec::kRaw) return v1::PROFILE_EXACT;
  if (codec == Codec::kPackKv) return v1::PROFILE_UNSPECIFIED;
  switch (profile) {
    case Profile::kTiny:
      return v1::PROFILE_TINY;
    case Profile::kCompact:
      return v1::PROFILE_COMPACT;
    case Profile::kBalanced:
      return v1::PROFILE_BALANCED;
    case Profile::kFine:
      return v1::PROFILE_FINE;
  }
  return v1::PROFILE_UNSPECIFIED;
}

void ToProto(const SessionSpec& spec, v1::Session* session) {
  session->set_name(spec.name);
  session->set_model(spec.model);
  for (const LayerShape& shape : spec.layers) {
    v1::LayerShape* layer = session->add_layers();
    layer->set_kv_heads(static_cast<uint32_t>(shape.kv_heads));
    layer->set_query_heads(static_cast<uint32_t>(shape.query_heads));
    layer->set_head_dim(static_cast<uint32_t>(shape.head_dim));
    layer->set_soft_cap(shape.soft_cap);
    layer->set_sliding_window(static_cast<uint32_t>(shape.sliding_window));
  }
  session->set_dtype(ToProto(spec.dtype));
  session->set_codec(ToProto(spec.codec));
  session->set_profile(ToProto(spec.codec, spec.profile));
  if (spec.codec == Codec::kPackKv) {
    v1::PackKvOptions* const packkv = session->mutable_packkv();
    packkv->set_k_relative_scale(spec.packkv.k_relative_scale);
    packkv->set_v_relative_scale(spec.packkv.v_relative_scale);
    packkv->set_pack_tokens(static_cast<uint32_t>(spec.packkv.pack_tokens));
    packkv->set_repacking(static_cast<v1::PackKvRepacking>(spec.packkv.repacking));
    packkv->set_normalize(spec.packkv.normalize);
  }
  session->set_calibration(spec.calibration);
  if (spec.time_to_live != absl::InfiniteDuration()) {
    absl::Duration rest;
    session->mutable_time_to_live()->set_seconds(
        absl::IDivDuration(spec.time_to_live, absl::Seconds(1), &rest));
    session->mutable_time_to_live()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  }
}

void ToProto(absl::Time time, google::protobuf::Timestamp* timestamp) {
  const int64_t seconds = absl::ToUnixSeconds(time);
  timestamp->set_seconds(seconds);
  timestamp->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

}  // namespace

absl::StatusOr<SessionSpec> ToSessionSpec(const v1::CreateSessionRequest& request) {
  SessionSpec spec;
  absl::Status status = ReadLayers(request, spec);
  if (status.ok()) {
    const absl::StatusOr<DType> dtype = ToDType(request.dtype());
    status = dtype.status();
    if (dtype.ok()) spec.dtype = *dtype;
  }
  if (status.ok()) status = ReadCodec(request, spec);
  if (status.ok()) status = ReadTimeToLive(request, spec);
  if (!status.ok()) return status;
  spec.name = request.name();
  spec.model = request.model();
  spec.calibration = request.calibration();
  for (const v1::QuerySecondMoments& moments : request.query_second_moments()) {
    spec.query_second_moments.emplace_back(moments.values().begin(), moments.values().end());
  }
  return spec;
}

absl::Status CheckGetSession(const v1::GetSessionRequest& request, const EngineOptions& limits) {
  if (request.session_id().empty() == request.name().empty()) {
    return FieldError("session_id", request.name().empty() ? "neither id nor name" : "id and name",
                      "exactly one of session_id and name");
  }
  if (!request.session_id().empty()) return CheckSessionId(request.session_id());
  return CheckText("name", request.name(), 1, limits.name_bytes_max);
}

absl::Status CheckSessionId(absl::string_view session_id) {
  return CheckText("session_id", session_id, 1, kSessionIdBytesMax);
}

absl::StatusOr<DType> ToDType(v1::Dtype dtype) {
  switch (dtype) {
    case v1::DTYPE_BF16:
      return DType::kBf16;
    case v1::DTYPE_FP16:
      return DType::kFp16;
    case v1::DTYPE_FP32:
      return DType::kFp32;
    default:
      return FieldError("dtype", static_cast<int>(dtype), "BF16, FP16 or FP32");
  }
}

v1::Codec ToProto(Codec codec) {
  switch (codec) {
    case Codec::kRaw:
      return v1::CODEC_RAW;
    case Codec::kPlanes:
      return v1::CODEC_PLANES;
    case Codec::kPackKv:
      return v1::CODEC_PACKKV;
  }
  return v1::CODEC_UNSPECIFIED;
}

absl::StatusOr<ListRange> ToListRange(const v1::ListSessionsRequest& request,
                                      const EngineOptions& limits) {
  const auto page_size_max = static_cast<uint32_t>(limits.page_size_max);
  if (request.page_size() > page_size_max) {
    return FieldError("page_size", request.page_size(),
                      absl::StrCat("at most ", limits.page_size_max));
  }
  absl::Status status = CheckText("page_token", request.page_token(), 0, limits.name_bytes_max);
  if (!status.ok()) return status;
  // The token of a page is the last name of the page before: nothing to keep, nothing to expire.
  return ListRange{request.page_token(),
                   request.page_size() == 0 ? page_size_max : request.page_size()};
}

v1::LayerState ToProto(const LayerState& state) {
  v1::LayerState proto;
  proto.set_token_count(state.token_count);
  proto.set_sealed_end(state.sealed_end);
  return proto;
}

void ToProto(const SessionInfo& info, v1::Session* session) {
  session->set_id(info.id);
  ToProto(info.spec, session);
  session->set_generation(info.generation);
  for (const LayerState& state : info.layers) *session->add_layer_states() = ToProto(state);
  session->set_committed_token_count(info.committed_token_count);
  session->set_durable_token_count(info.durable_token_count);
  session->set_logical_bytes(info.logical_bytes);
  session->set_stored_bytes(info.stored_bytes);
  ToProto(info.create_time, session->mutable_create_time());
  if (info.expire_time != absl::InfiniteFuture()) {
    ToProto(info.expire_time, session->mutable_expire_time());
  }
}

}  // namespace kvdepot
