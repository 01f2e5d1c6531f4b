#ifndef KVDEPOT_SERVER_ENGINE_APPEND_H_
#define KVDEPOT_SERVER_ENGINE_APPEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::BeginAppend.
absl::StatusOr<std::unique_ptr<Engine::Addition>> BeginAddition(EngineState* state,
                                                                const Caller& caller,
                                                                const std::string& session_id,
                                                                uint64_t generation);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_APPEND_H_
