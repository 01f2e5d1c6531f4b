#include "gpu/packkv/cuda_support.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gpu/packkv/format.h"
#include "gpu/packkv/quantize.h"

namespace kvdepot::packkv {
namespace {

template <class Value>
absl::Status NotBuilt(absl::string_view field, Value value, absl::string_view built) {
  return absl::UnimplementedError(absl::StrCat(field, ": ", value, ", must be ", built));
}

}  // namespace

absl::Status SupportedOnCuda(const LayerShape& shape, const Options& options) {
  if (shape.head_dim != 64 && shape.head_dim != 128)
    return NotBuilt("head_dim", shape.head_dim, "64 or 128");
  if (options.normalize) return NotBuilt("packkv.normalize", "true", "false");
  if (options.pack_tokens != kPackTokens)
    return NotBuilt("packkv.pack_tokens", options.pack_tokens, absl::StrCat(kPackTokens));
  if (options.repacking == Repacking::kGreedy)
    return NotBuilt("packkv.repacking", "GREEDY", "NONE or MEDIAN");
  for (const auto& [field, scale] :
       {std::pair{"k", options.k_relative_scale}, std::pair{"v", options.v_relative_scale}}) {
    if (CodeBitsMax(scale) > kNibbleCodeBits) {
      return NotBuilt(absl::StrCat("packkv.", field, "_relative_scale"), scale,
                      "large enough for codes of 4 bits, 0.0776");
    }
  }
  return absl::OkStatus();
}

}  // namespace kvdepot::packkv
