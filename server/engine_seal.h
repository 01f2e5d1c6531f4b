#ifndef KVDEPOT_SERVER_ENGINE_SEAL_H_
#define KVDEPOT_SERVER_ENGINE_SEAL_H_

#include <cstdint>
#include <string>

#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::SealSession.
void StartSeal(EngineState* state, const Caller& caller, const std::string& session_id,
               uint64_t generation, Engine::Done<SessionInfo> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_SEAL_H_
