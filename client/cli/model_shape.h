// How a user writes the shape of a model's cache.
#ifndef KVDEPOT_CLIENT_CLI_MODEL_SHAPE_H_
#define KVDEPOT_CLIENT_CLI_MODEL_SHAPE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/session_size.h"

namespace kvdepot::cli {

// "28x2x128": layers, KV heads of each, channels of a head. With "w4096" behind it those layers
// have a sliding window of so many tokens; commas join layers that differ. INVALID_ARGUMENT naming
// the part, what it is and what is allowed.
absl::StatusOr<std::vector<LayerGroup>> ParseModelShape(absl::string_view text);

// "28 layers of 2 KV heads of 128".
std::string ModelShapeText(const std::vector<LayerGroup>& groups);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_MODEL_SHAPE_H_
