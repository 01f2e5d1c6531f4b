// Sessions between wire and engine. Here is checked what the engine's types cannot hold: numbers of
// enums, sizes of integers, times, one of two fields. Ranges are the engine's to check
// (session_spec.h). Strings are valid UTF-8 already: the proto3 parser refuses others.
#ifndef KVDEPOT_SERVER_SERVICES_SESSION_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_SESSION_CONVERT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/engine_options.h"
#include "server/session_types.h"

namespace kvdepot {

// Defaults filled in. INVALID_ARGUMENT names field, value and limit, here and below.
absl::StatusOr<SessionSpec> ToSessionSpec(const v1::CreateSessionRequest& request);

absl::Status CheckGetSession(const v1::GetSessionRequest& request, const EngineOptions& limits);
absl::Status CheckSessionId(absl::string_view session_id);

// UNSPECIFIED and unknown numbers are errors.
absl::StatusOr<DType> ToDType(v1::Dtype dtype);
v1::Codec ToProto(Codec codec);

// How many sessions a page holds, and the name that the page follows.
struct ListRange {
  std::string after_name;
  size_t limit = 0;
};
absl::StatusOr<ListRange> ToListRange(const v1::ListSessionsRequest& request,
                                      const EngineOptions& limits);

v1::LayerState ToProto(const LayerState& state);
void ToProto(const SessionInfo& info, v1::Session* session);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_SESSION_CONVERT_H_
