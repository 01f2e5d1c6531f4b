// Sealing that no call waits for: what a mapped writer's Commit has decided is encoded after the
// Commit was answered.
#ifndef KVDEPOT_SERVER_BACKGROUND_SEAL_H_
#define KVDEPOT_SERVER_BACKGROUND_SEAL_H_

#include <cstdint>

#include "server/engine_state.h"
#include "server/mutation_right.h"
#include "server/session.h"

namespace kvdepot {

// Bytes of the exact tokens of `session` that are due: segments of them take about as much at most.
// Under the engine's lock.
uint64_t DueBytes(const Session& session);

// Seals what is due in the session of `right`, turn after turn as a piece of work of its own, once
// the right is given back. It ends where another mutation comes: Commit and Truncate seal the rest
// first, a take-over and whoever maps for writing start this again, and the rest of them leave it
// to those. Nothing happens where nothing is due, or the tenant's queue is full: then it stays due.
void StartBackgroundSeal(EngineState* state, const MutationRight& right);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_BACKGROUND_SEAL_H_
