// Buffers that processes with a lease have registered. None of these calls waits for the device.
#ifndef KVDEPOT_SERVER_ENGINE_BUFFER_H_
#define KVDEPOT_SERVER_ENGINE_BUFFER_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine_state.h"
#include "server/mapping_types.h"

namespace kvdepot {

// Engine's methods of these names.
absl::Status RegisterBuffer(EngineState* state, const Caller& caller, BufferRequest request);
void UnregisterBuffer(EngineState* state, const Caller& caller, const std::string& lease_id,
                      uint64_t buffer, std::function<void(const absl::Status&)> done);
absl::StatusOr<BufferRef> FindBuffer(EngineState* state, const Caller& caller,
                                     const std::string& lease_id, uint64_t buffer);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_BUFFER_H_
