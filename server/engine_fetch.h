#ifndef KVDEPOT_SERVER_ENGINE_FETCH_H_
#define KVDEPOT_SERVER_ENGINE_FETCH_H_

#include <cstdint>
#include <string>

#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::Fetch.
void StartFetch(EngineState* state, const Caller& caller, FetchRange range,
                Engine::Done<FetchedTokens> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_FETCH_H_
