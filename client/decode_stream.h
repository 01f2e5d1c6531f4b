// A stream of decoding steps: each appends new tokens of one layer and attends with their queries,
// for one session or for a batch of them.
//
// Not retried: the daemon ends the stream at the first error, and only the caller knows which
// tokens it still has. What was answered is stored. To go on, open another stream and repeat the
// unanswered step: it is idempotent by position.
//
// Thread safety: one thread at a time.
#ifndef KVDEPOT_CLIENT_DECODE_STREAM_H_
#define KVDEPOT_CLIENT_DECODE_STREAM_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace kvdepot {

class DecodeStream {
 public:
  // Cancels what is unanswered.
  virtual ~DecodeStream() = default;

  // One round trip. After an error every further step returns the same error.
  virtual absl::StatusOr<v1::DecodeResponse> Step(const v1::DecodeRequest& request) = 0;

  // Tells the daemon that no step follows and waits for its word. Optional.
  virtual absl::Status Finish() = 0;

 protected:
  DecodeStream() = default;
  DecodeStream(const DecodeStream&) = delete;
  DecodeStream& operator=(const DecodeStream&) = delete;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_DECODE_STREAM_H_
