// Registered buffers between wire and engine (buffer.proto). Errors as in session_convert.h.
#ifndef KVDEPOT_SERVER_SERVICES_BUFFER_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_BUFFER_CONVERT_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/call_memory.h"
#include "server/mapping_types.h"

namespace kvdepot {

// The buffer of a range whose lease_id is valid. FAILED_PRECONDITION naming both epochs where the
// range's is none of this daemon's life; errors as Engine::FindBuffer.
using BufferFinder = std::function<absl::StatusOr<BufferRef>(const v1::BufferRange& range)>;

absl::StatusOr<BufferRequest> ToBufferRequest(const v1::RegisterBufferRequest& request);

// What a call reads: `bytes`, or `range` if that is not null, which are fields named `field` and
// `field`_range. INVALID_ARGUMENT: both are set, the range has more than `bytes_max`, or it is not
// in its buffer.
absl::StatusOr<CallInput> ToCallInput(absl::string_view field, const std::string& bytes,
                                      const v1::BufferRange* range, uint64_t bytes_max,
                                      const BufferFinder& find);

// What a call writes; `range` null: in its reply.
absl::StatusOr<CallOutput> ToCallOutput(absl::string_view field, const v1::BufferRange* range,
                                        const BufferFinder& find);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_BUFFER_CONVERT_H_
