// How decided segments become sealed ones.
#ifndef KVDEPOT_SERVER_SEALER_H_
#define KVDEPOT_SERVER_SEALER_H_

#include "absl/status/statusor.h"
#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// Encodes the oldest segment that is due in a layer and then frees its part of the tail. False:
// none is due.
//
// RESOURCE_EXHAUSTED: there is no memory for the segment while its tokens are still in the tail. It
// stays due: the tokens stay exact, and whoever appends next tries again before it stores anything.
// So an addition never fails for want of the memory that compressing it takes, and what is sealed
// in the end is the same.
//
// On the worker; the session is in the hands of the caller (MutationRight).
absl::StatusOr<bool> SealNext(EngineState* state, Session* session, size_t layer);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SEALER_H_
