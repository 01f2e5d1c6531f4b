// How tokens get into a layer, in three steps: check the request (under the lock), prepare (values
// checked, memory there), store. Only the first two can fail, so that several chunks are stored all
// or none.
#ifndef KVDEPOT_SERVER_CHUNK_WRITER_H_
#define KVDEPOT_SERVER_CHUNK_WRITER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine_state.h"
#include "server/session.h"
#include "server/session_types.h"

namespace kvdepot {

// INVALID_ARGUMENT: layer, count, bytes or second moments do not fit the session. OUT_OF_RANGE: a
// gap. RESOURCE_EXHAUSTED: more than `tokens_max` tokens. Fields are named as in the contract
// ("chunk.k").
absl::Status CheckChunk(const Session& session, const TokenChunk& chunk, uint64_t tokens_max);

// The part of a chunk that its layer lacks, ready to be stored. Its session is in the hands of the
// caller (MutationRight), so that the layer's count stays.
class ChunkWriter {
 public:
  // INVALID_ARGUMENT: a value is not finite. RESOURCE_EXHAUSTED: no memory. On the worker; `chunk`
  // has passed CheckChunk.
  static absl::StatusOr<ChunkWriter> Prepare(EngineState* state, Session* session,
                                             const TokenChunk& chunk);

  // Stores the tokens and returns how many they are. On the worker.
  uint64_t Store(EngineState* state);

 private:
  ChunkWriter() = default;

  Session* session_ = nullptr;
  TokenChunk chunk_;
  // The chunk's first `skip_` tokens are in the layer already.
  uint64_t skip_ = 0;
  uint64_t count_ = 0;
  std::vector<ExtentRef> fresh_;
  // Null where the chunk's moments have no use.
  QueryMomentsRef moments_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_CHUNK_WRITER_H_
