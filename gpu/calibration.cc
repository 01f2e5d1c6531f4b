#include "gpu/calibration.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "gpu/backend.h"
#include "gpu/planes/pattern.h"

namespace kvdepot {
namespace {

absl::Status ValidateTensor(absl::string_view field, int head_dim, const TensorLayout& tensor) {
  if (tensor.order.size() != static_cast<size_t>(head_dim)) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".channel_order has ", tensor.order.size(), " entries, head_dim is ", head_dim));
  }
  std::vector<bool> seen(tensor.order.size());
  for (size_t place = 0; place < tensor.order.size(); ++place) {
    const uint8_t channel = tensor.order[place];
    if (channel >= head_dim || seen[channel]) {
      return absl::InvalidArgumentError(absl::StrCat(field, ".channel_order[", place, "] is ",
                                                     channel, ", expected each of 0 to ",
                                                     head_dim - 1, " once"));
    }
    seen[channel] = true;
  }
  if (tensor.pattern >= planes::PatternCount(head_dim)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".patterns holds ", tensor.pattern,
                                                   ", head_dim ", head_dim, " has ",
                                                   planes::PatternCount(head_dim), " patterns"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateLayerCalibration(const LayerShape& shape,
                                      const LayerCalibration& calibration) {
  if (calibration.heads.size() != static_cast<size_t>(shape.kv_heads)) {
    return absl::InvalidArgumentError(absl::StrCat("heads has ", calibration.heads.size(),
                                                   " entries, kv_heads is ", shape.kv_heads));
  }
  for (size_t head = 0; head < calibration.heads.size(); ++head) {
    const HeadLayout& layout = calibration.heads[head];
    const std::string field = absl::StrCat("heads[", head, "]");
    if (absl::Status status = ValidateTensor(field + ".k", shape.head_dim, layout.k); !status.ok())
      return status;
    if (absl::Status status = ValidateTensor(field + ".v", shape.head_dim, layout.v); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

}  // namespace kvdepot
