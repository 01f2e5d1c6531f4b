#ifndef KVDEPOT_SERVER_ENGINE_TRUNCATE_H_
#define KVDEPOT_SERVER_ENGINE_TRUNCATE_H_

#include <cstdint>
#include <string>

#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::TruncateSession.
void StartTruncate(EngineState* state, const Caller& caller, const std::string& session_id,
                   uint64_t generation, uint64_t token_count, Engine::Done<SessionInfo> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_TRUNCATE_H_
