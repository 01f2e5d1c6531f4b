#ifndef KVDEPOT_SERVER_ENGINE_ATTEND_H_
#define KVDEPOT_SERVER_ENGINE_ATTEND_H_

#include <vector>

#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::Attend.
void StartAttend(EngineState* state, const Caller& caller, int layer, float scale,
                 std::vector<AttendQuery> queries, Engine::Done<std::vector<AttendResult>> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_ATTEND_H_
