// What a session may be asked to be.
#ifndef KVDEPOT_SERVER_SESSION_SPEC_H_
#define KVDEPOT_SERVER_SESSION_SPEC_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/engine_options.h"
#include "server/session_types.h"

namespace kvdepot {

// INVALID_ARGUMENT naming the first field that is out of its range, its value and the range.
absl::Status ValidateSpec(const SessionSpec& spec, const EngineOptions& options);

// A layer's [kv_head][channel] or nothing; INVALID_ARGUMENT naming `field`.
absl::Status ValidateQuerySecondMoments(absl::string_view field, const LayerShape& shape,
                                        const std::vector<float>& moments);

// The first field by which two sessions of one name differ; empty if they are the same
// (session_types.h says what counts).
absl::string_view FirstDifference(const SessionSpec& a, const SessionSpec& b);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_SPEC_H_
