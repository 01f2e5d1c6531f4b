// How a session goes on after a writer that may still be there.
#ifndef KVDEPOT_SERVER_TAKE_OVER_H_
#define KVDEPOT_SERVER_TAKE_OVER_H_

#include "absl/status/status.h"
#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// Rolls all layers back to the committed count. Where a mapped writer's lease ended, its process
// may live and write behind the committed tokens: extents with such slots are replaced by copies,
// so that it writes into memory that nobody reads. If any of both was due, the generation is a new
// one. RESOURCE_EXHAUSTED: no memory for the copies, nothing has changed. On the worker, in the
// hands of the caller (MutationRight).
absl::Status TakeOver(EngineState* state, Session* session);

// The same as a piece of work of its own, for every session in EngineState::left_by_writer. What
// cannot be done now (no memory, a mutation in flight) stays there.
void StartTakeOvers(EngineState* state);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_TAKE_OVER_H_
