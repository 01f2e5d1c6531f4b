#ifndef KVDEPOT_SERVER_ENGINE_DECODE_H_
#define KVDEPOT_SERVER_ENGINE_DECODE_H_

#include <vector>

#include "server/engine.h"
#include "server/engine_state.h"

namespace kvdepot {

// Engine::Decode.
void StartDecode(EngineState* state, const Caller& caller, int layer, float scale,
                 std::vector<DecodeStep> steps, Engine::Done<std::vector<AttendResult>> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_DECODE_H_
