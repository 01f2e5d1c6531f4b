#include "server/session_spec.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

constexpr int kKvHeadsMax = 1024;

absl::Status OutOfRange(absl::string_view field, absl::AlphaNum value, absl::AlphaNum range) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, ", must be ", range));
}

absl::Status ValidateShape(const LayerShape& shape, absl::string_view layer) {
  const auto field = [layer](absl::string_view name) { return absl::StrCat(layer, ".", name); };
  if (shape.kv_heads < 1 || shape.kv_heads > kKvHeadsMax) {
    return OutOfRange(field("kv_heads"), shape.kv_heads, absl::StrCat("1..", kKvHeadsMax));
  }
  if (shape.query_heads % shape.kv_heads != 0 || shape.query_heads < shape.kv_heads ||
      shape.query_heads / shape.kv_heads > kQueryHeadsPerKvHeadMax) {
    return OutOfRange(
        field("query_heads"), shape.query_heads,
        absl::StrCat("1..", kQueryHeadsPerKvHeadMax, " times kv_heads, which is ", shape.kv_heads));
  }
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256) {
    return OutOfRange(field("head_dim"), shape.head_dim, "64, 128 or 256");
  }
  if (!std::isfinite(shape.soft_cap) || shape.soft_cap < 0) {
    return OutOfRange(field("soft_cap"), shape.soft_cap, "finite and at least 0");
  }
  if (shape.sliding_window < 0) {
    return OutOfRange(field("sliding_window"), shape.sliding_window, "at least 0");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateQuerySecondMoments(absl::string_view field, const LayerShape& shape,
                                        const std::vector<float>& moments) {
  if (!moments.empty() && moments.size() != shape.row_values()) {
    return OutOfRange(field, absl::StrCat(moments.size(), " values"),
                      absl::StrCat("none or ", shape.row_values(), " (kv_heads x head_dim)"));
  }
  for (size_t i = 0; i < moments.size(); ++i) {
    if (!std::isfinite(moments[i]) || moments[i] < 0) {
      return OutOfRange(absl::StrCat(field, "[", i, "]"), moments[i], "finite and at least 0");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSpec(const SessionSpec& spec, const EngineOptions& options) {
  const size_t name_bytes_max = static_cast<size_t>(options.name_bytes_max);
  if (spec.name.empty() || spec.name.size() > name_bytes_max) {
    return OutOfRange("name", absl::StrCat(spec.name.size(), " bytes"),
                      absl::StrCat("1..", name_bytes_max));
  }
  if (spec.model.size() > name_bytes_max) {
    return OutOfRange("model", absl::StrCat(spec.model.size(), " bytes"),
                      absl::StrCat("0..", name_bytes_max));
  }
  if (spec.layers.empty() || spec.layers.size() > static_cast<size_t>(options.layers_max)) {
    return OutOfRange("layers", absl::StrCat(spec.layers.size(), " entries"),
                      absl::StrCat("1..", options.layers_max));
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    absl::Status status = ValidateShape(spec.layers[i], absl::StrCat("layers[", i, "]"));
    if (!status.ok()) return status;
  }
  if (spec.codec == Codec::kRaw && !spec.calibration.empty()) {
    return OutOfRange("calibration", spec.calibration, "empty with codec raw");
  }
  if (spec.time_to_live <= absl::ZeroDuration()) {
    return OutOfRange("time_to_live", absl::FormatDuration(spec.time_to_live), "above 0");
  }
  const std::vector<std::vector<float>>& moments = spec.query_second_moments;
  if (!moments.empty() && moments.size() != spec.layers.size()) {
    return OutOfRange("query_second_moments", absl::StrCat(moments.size(), " entries"),
                      absl::StrCat("none or ", spec.layers.size(), ", one a layer"));
  }
  for (size_t i = 0; i < moments.size(); ++i) {
    absl::Status status = ValidateQuerySecondMoments(
        absl::StrCat("query_second_moments[", i, "].values"), spec.layers[i], moments[i]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::string_view FirstDifference(const SessionSpec& a, const SessionSpec& b) {
  if (a.layers != b.layers) return "layers";
  if (a.dtype != b.dtype) return "dtype";
  if (a.codec != b.codec) return "codec";
  if (a.codec == Codec::kPlanes && a.profile != b.profile) return "profile";
  if (a.calibration != b.calibration) return "calibration";
  if (a.model != b.model) return "model";
  return "";
}

}  // namespace kvdepot
