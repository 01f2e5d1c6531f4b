// The daemon's look at tokens that a client wrote by itself.
#ifndef KVDEPOT_SERVER_COMMIT_CHECK_H_
#define KVDEPOT_SERVER_COMMIT_CHECK_H_

#include <cstdint>

#include "absl/status/status.h"
#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// INVALID_ARGUMENT naming the first value of the tokens behind the committed ones, up to
// `token_count`, that is not finite. The session has a mapped writer and room for them. On the
// worker, in the hands of the caller (MutationRight).
absl::Status CheckCommitted(EngineState* state, const Session& session, uint64_t token_count);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_COMMIT_CHECK_H_
