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
    return OutOfRange(field("kv_heads"), shape.kv_heads, kKvHeadsRange);
  }
  if (shape.query_heads % shape.kv_heads != 0 || shape.query_heads < shape.kv_heads ||
      shape.query_heads / shape.kv_heads > kQueryHeadsPerKvHeadMax) {
    return OutOfRange(field("query_heads"), shape.query_heads,
                      QueryHeadsRange(static_cast<uint64_t>(shape.kv_heads)));
  }
  if (shape.head_dim != 64 && shape.head_dim != 128 && shape.head_dim != 256) {
    return OutOfRange(field("head_dim"), shape.head_dim, kHeadDimRange);
  }
  if (!std::isfinite(shape.soft_cap) || shape.soft_cap < 0) {
    return OutOfRange(field("soft_cap"), shape.soft_cap, "finite and at least 0");
  }
  if (shape.sliding_window < 0) {
    return OutOfRange(field("sliding_window"), shape.sliding_window, kSlidingWindowRange);
  }
  return absl::OkStatus();
}

// Position of the first byte of a control character (U+0000..U+001F, U+007F..U+009F), npos if there
// is none. `text` is UTF-8.
size_t FindControlCharacter(absl::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte < 0x20 || byte == 0x7F) return i;
    // Lead byte of U+0080..U+00BF.
    if (byte == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0) {
      return i;
    }
  }
  return absl::string_view::npos;
}

absl::Status ValidateText(absl::string_view field, absl::string_view text, int bytes_min,
                          int bytes_max) {
  if (text.size() < static_cast<size_t>(bytes_min) ||
      text.size() > static_cast<size_t>(bytes_max)) {
    return OutOfRange(field, absl::StrCat(text.size(), " bytes"),
                      absl::StrCat(bytes_min, "..", bytes_max));
  }
  const size_t position = FindControlCharacter(text);
  if (position == absl::string_view::npos) return absl::OkStatus();
  const auto byte = static_cast<unsigned char>(text[position]);
  return OutOfRange(
      field, absl::StrCat("byte 0x", absl::Hex(byte, absl::kZeroPad2), " at position ", position),
      "free of control characters");
}

absl::string_view NameOf(DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return "bf16";
    case DType::kFp16:
      return "fp16";
    case DType::kFp32:
      return "fp32";
  }
  return "";
}

absl::string_view NameOf(Profile profile) {
  switch (profile) {
    case Profile::kTiny:
      return "tiny";
    case Profile::kCompact:
      return "compact";
    case Profile::kBalanced:
      return "balanced";
    case Profile::kFine:
      return "fine";
  }
  return "";
}

absl::string_view NameOf(packkv::Repacking repacking) {
  switch (repacking) {
    case packkv::Repacking::kNone:
      return "none";
    case packkv::Repacking::kMedian:
      return "median";
    case packkv::Repacking::kGreedy:
      return "greedy";
  }
  return "";
}

std::string Quoted(const std::string& text) { return absl::StrCat("\"", text, "\""); }

std::string Difference(absl::string_view field, absl::AlphaNum asked, absl::AlphaNum existing) {
  return absl::StrCat(field, ": ", asked, ", is ", existing);
}

std::string FirstDifference(const LayerShape& existing, const LayerShape& asked,
                            absl::string_view layer) {
  const auto differ = [layer](absl::string_view name, auto is, auto wanted) {
    return Difference(absl::StrCat(layer, ".", name), wanted, is);
  };
  if (existing.kv_heads != asked.kv_heads)
    return differ("kv_heads", existing.kv_heads, asked.kv_heads);
  if (existing.query_heads != asked.query_heads)
    return differ("query_heads", existing.query_heads, asked.query_heads);
  if (existing.head_dim != asked.head_dim)
    return differ("head_dim", existing.head_dim, asked.head_dim);
  if (existing.soft_cap != asked.soft_cap)
    return differ("soft_cap", existing.soft_cap, asked.soft_cap);
  if (existing.sliding_window != asked.sliding_window)
    return differ("sliding_window", existing.sliding_window, asked.sliding_window);
  return "";
}

std::string FirstDifference(const packkv::Options& existing, const packkv::Options& asked) {
  const auto differ = [](absl::string_view name, auto is, auto wanted) {
    return Difference(absl::StrCat("packkv.", name), wanted, is);
  };
  if (existing.normalize != asked.normalize)
    return differ("normalize", existing.normalize ? "true" : "false",
                  asked.normalize ? "true" : "false");
  if (existing.k_relative_scale != asked.k_relative_scale)
    return differ("k_relative_scale", existing.k_relative_scale, asked.k_relative_scale);
  if (existing.v_relative_scale != asked.v_relative_scale)
    return differ("v_relative_scale", existing.v_relative_scale, asked.v_relative_scale);
  if (existing.pack_tokens != asked.pack_tokens)
    return differ("pack_tokens", existing.pack_tokens, asked.pack_tokens);
  if (existing.repacking != asked.repacking)
    return differ("repacking", NameOf(existing.repacking), NameOf(asked.repacking));
  return "";
}

}  // namespace

std::string QueryHeadsRange(uint64_t kv_heads) {
  return absl::StrCat("1..", kQueryHeadsPerKvHeadMax, " times kv_heads, which is ", kv_heads);
}

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
  absl::Status texts = ValidateText("name", spec.name, 1, options.name_bytes_max);
  if (texts.ok()) texts = ValidateText("model", spec.model, 0, options.name_bytes_max);
  if (!texts.ok()) return texts;
  if (spec.layers.empty() || spec.layers.size() > static_cast<size_t>(options.layers_max)) {
    return OutOfRange("layers", absl::StrCat(spec.layers.size(), " entries"),
                      absl::StrCat("1..", options.layers_max));
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    absl::Status status = ValidateShape(spec.layers[i], absl::StrCat("layers[", i, "]"));
    if (!status.ok()) return status;
  }
  const bool takes_calibration =
      spec.codec == Codec::kPlanes || (spec.codec == Codec::kPackKv && spec.packkv.normalize);
  if (!takes_calibration && !spec.calibration.empty()) {
    return OutOfRange("calibration", spec.calibration,
                      absl::StrCat("empty with codec ", CodecName(spec.codec),
                                   spec.codec == Codec::kPackKv ? " unless it normalises" : ""));
  }
  if (spec.codec == Codec::kPackKv) {
    absl::Status status = packkv::Validate(spec.packkv);
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat("packkv.", status.message()));
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

std::string FirstDifference(const SessionSpec& existing, const SessionSpec& asked) {
  if (existing.layers.size() != asked.layers.size()) {
    return Difference("layers", absl::StrCat(asked.layers.size(), " entries"),
                      existing.layers.size());
  }
  for (size_t i = 0; i < asked.layers.size(); ++i) {
    std::string difference =
        FirstDifference(existing.layers[i], asked.layers[i], absl::StrCat("layers[", i, "]"));
    if (!difference.empty()) return difference;
  }
  if (existing.dtype != asked.dtype) {
    return Difference("dtype", NameOf(asked.dtype), NameOf(existing.dtype));
  }
  if (existing.codec != asked.codec) {
    return Difference("codec", CodecName(asked.codec), CodecName(existing.codec));
  }
  if (existing.codec == Codec::kPlanes && existing.profile != asked.profile) {
    return Difference("profile", NameOf(asked.profile), NameOf(existing.profile));
  }
  if (existing.codec == Codec::kPackKv) {
    std::string difference = FirstDifference(existing.packkv, asked.packkv);
    if (!difference.empty()) return difference;
  }
  if (existing.calibration != asked.calibration) {
    return Difference("calibration", Quoted(asked.calibration), Quoted(existing.calibration));
  }
  if (existing.model != asked.model) {
    return Difference("model", Quoted(asked.model), Quoted(existing.model));
  }
  return "";
}

}  // namespace kvdepot
