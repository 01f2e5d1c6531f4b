// Extents that a mapped writer fills before the daemon knows of its tokens.
#ifndef KVDEPOT_SERVER_MAP_ROOM_H_
#define KVDEPOT_SERVER_MAP_ROOM_H_

#include <cstdint>

#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// Tokens that fit into every layer of `session` behind those that are there. Under the engine's
// lock; the session has a mapped writer.
uint64_t RoomTokens(const Session& session);

// Hands out extents until every layer has room for as many tokens as the writer asked for, or the
// memory ends: then it has less, and a later call goes on. If a layer has no room at all, the
// tenant's leases are asked to unmap. On the worker, in the hands of the caller (MutationRight).
void TopUpRoom(EngineState* state, Session* session);
// The same without asking anybody, and with as much memory left over as the session's due segments
// may take. False: the memory ends before.
bool TopUpRoomIfFree(EngineState* state, Session* session);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_MAP_ROOM_H_
