// What a session may be asked to be.
#ifndef KVDEPOT_SERVER_SESSION_SPEC_H_
#define KVDEPOT_SERVER_SESSION_SPEC_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/engine_options.h"
#include "server/session_types.h"

namespace kvdepot {

// Ranges of a shape's numbers, as messages say them. Wire numbers that no shape can hold are
// refused in the same words (services/session_convert).
inline constexpr absl::string_view kKvHeadsRange = "1..1024";
std::string QueryHeadsRange(uint64_t kv_heads);
inline constexpr absl::string_view kHeadDimRange = "64, 128 or 256";
inline constexpr absl::string_view kSlidingWindowRange = "0..2147483647";

// INVALID_ARGUMENT naming the first field that is out of its range, its value and the range. Texts
// that clients choose hold no control characters: they are printed on terminals.
absl::Status ValidateSpec(const SessionSpec& spec, const EngineOptions& options);

// A layer's [kv_head][channel] or nothing; INVALID_ARGUMENT naming `field`.
absl::Status ValidateQuerySecondMoments(absl::string_view field, const LayerShape& shape,
                                        const std::vector<float>& moments);

// The first field by which `asked` differs from an `existing` session of its name, with both
// values: "dtype: fp32, is bf16". Empty if they are the same (session_types.h says what counts).
std::string FirstDifference(const SessionSpec& existing, const SessionSpec& asked);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SESSION_SPEC_H_
