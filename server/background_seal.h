// Sealing that no call waits for: what a mapped writer's Commit has decided is encoded after the
// Commit was answered.
#ifndef KVDEPOT_SERVER_BACKGROUND_SEAL_H_
#define KVDEPOT_SERVER_BACKGROUND_SEAL_H_

#include <memory>

#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// Seals what is due in a session that waits for it (Session::BackgroundSeal), turn after turn as a
// piece of work of its own. Where a turn meets a mutation it ends, and the session waits again: who
// gives the right to the mutation back (MutationRight) calls this. Where the tenant's queue is full
// the session goes on waiting, for the end of the next mutation. Without the lock.
void StartBackgroundSeal(EngineState* state, const std::shared_ptr<Session>& session);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_BACKGROUND_SEAL_H_
