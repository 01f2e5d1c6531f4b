#include "client/cli/model_shape.h"

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gpu/planes/pattern.h"
#include "gpu/segment_view.h"

namespace kvdepot::cli {
namespace {

// Sixteen times what a daemon takes by default.
constexpr int kLayersMax = 4096;

// A number at least 1 that fills `text`.
bool ParseCount(absl::string_view text, int* count) {
  return absl::SimpleAtoi(text, count) && *count >= 1;
}

absl::StatusOr<LayerGroup> ParseGroup(absl::string_view text) {
  const auto fail = [text](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': ", why));
  };
  LayerGroup group;
  const size_t window = text.find('w');
  if (window != absl::string_view::npos &&
      !ParseCount(text.substr(window + 1), &group.shape.sliding_window)) {
    return fail("behind w comes a sliding window of at least 1 token");
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(text.substr(0, window), 'x');
  int layers = 0;
  if (parts.size() != 3 || !ParseCount(parts[0], &layers) ||
      !ParseCount(parts[1], &group.shape.kv_heads) ||
      !ParseCount(parts[2], &group.shape.head_dim)) {
    return fail("must be LAYERSxKV_HEADSxHEAD_DIM, as 28x2x128");
  }
  if (layers > kLayersMax) return fail(absl::StrCat("layers must be 1..", kLayersMax));
  if (group.shape.kv_heads > kSegmentKvHeadsMax) {
    return fail(absl::StrCat("KV heads must be 1..", kSegmentKvHeadsMax));
  }
  if (planes::PatternCount(group.shape.head_dim) == 0)
    return fail("head_dim must be 64, 128 or 256");
  group.layers = static_cast<uint64_t>(layers);
  group.shape.query_heads = group.shape.kv_heads;
  return group;
}

}  // namespace

absl::StatusOr<std::vector<LayerGroup>> ParseModelShape(absl::string_view text) {
  std::vector<LayerGroup> groups;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    absl::StatusOr<LayerGroup> group = ParseGroup(part);
    if (!group.ok()) return group.status();
    groups.push_back(*group);
  }
  return groups;
}

std::string ModelShapeText(const std::vector<LayerGroup>& groups) {
  return absl::StrJoin(groups, ", ", [](std::string* out, const LayerGroup& group) {
    const LayerShape& shape = group.shape;
    absl::StrAppend(out, group.layers, group.layers == 1 ? " layer of " : " layers of ",
                    shape.kv_heads, " KV ", shape.kv_heads == 1 ? "head" : "heads", " of ",
                    shape.head_dim);
    if (shape.sliding_window > 0) absl::StrAppend(out, " (window ", shape.sliding_window, ")");
  });
}

}  // namespace kvdepot::cli
