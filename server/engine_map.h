// MapSession and Commit.
#ifndef KVDEPOT_SERVER_ENGINE_MAP_H_
#define KVDEPOT_SERVER_ENGINE_MAP_H_

#include "server/engine.h"
#include "server/engine_state.h"
#include "server/map_reply.h"
#include "server/mapping_types.h"

namespace kvdepot {

void StartMap(EngineState* state, const Caller& caller, MapRequest request,
              Engine::Done<MapReply> done);
void StartCommit(EngineState* state, const Caller& caller, CommitRequest request,
                 Engine::Done<MapReply> done);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_MAP_H_
