#include "gpu/packkv/options.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvdepot::packkv {

absl::Status Validate(const Options& options) {
  const float least = options.normalize ? kNormalizedScaleMin : kRelativeScaleMin;
  const float most = options.normalize ? kNormalizedScaleMax : 1;
  for (const auto& [field, value] : {std::pair("k_relative_scale", options.k_relative_scale),
                                     std::pair("v_relative_scale", options.v_relative_scale)}) {
    if (value >= least && value <= most) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", value, ", must be ", least, "..",
                                                   most,
                                                   options.normalize ? " with normalize" : ""));
  }
  if (options.pack_tokens != 4 && options.pack_tokens != 8 && options.pack_tokens != 16) {
    return absl::InvalidArgumentError(
        absl::StrCat("pack_tokens: ", options.pack_tokens, ", must be ", kPackTokensRange));
  }
  const int repacking = static_cast<int>(options.repacking);
  if (repacking >= 1 && repacking <= 3) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("repacking: ", repacking, ", must be 1..3"));
}

}  // namespace kvdepot::packkv
