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

bool IsBuiltFor(int head_dim) { return head_dim == 64 || head_dim == 128; }

}  // namespace

absl::Status CheckReadableOnCuda(int head_dim, const BodyHeader& header) {
  const auto unreadable = [](absl::string_view field, int value, absl::string_view expected) {
    return absl::DataLossError(
        absl::StrCat("segment ", field, " is ", value, ", expected ", expected, " on a GPU"));
  };
  if (!IsBuiltFor(head_dim)) return unreadable("head_dim", head_dim, "64 or 128");
  if (header.form != static_cast<uint8_t>(Form::kTokens))
    return unreadable("form", header.form, "0 (tokens)");
  if (header.pack_tokens != kPackTokens)
    return unreadable("pack_tokens", header.pack_tokens, absl::StrCat(kPackTokens));
  if (header.k_bits > kNibbleCodeBits)
    return unreadable("k_bits", header.k_bits, absl::StrCat("at most ", kNibbleCodeBits));
  if (header.v_bits > kNibbleCodeBits)
    return unreadable("v_bits", header.v_bits, absl::StrCat("at most ", kNibbleCodeBits));
  return absl::OkStatus();
}

absl::Status SupportedOnCuda(const LayerShape& shape, const Options& options) {
  if (!IsBuiltFor(shape.head_dim)) return NotBuilt("head_dim", shape.head_dim, "64 or 128");
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
