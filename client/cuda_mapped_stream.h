// Attends over mapped sessions, and extends them, by kernels of this process on a CUDA stream.
//
//   auto stream = CudaMappedStream::Create(cuda_stream);
//   stream->Refresh(session);                    // once before a capture
//   capture into a graph, a layer after the other:
//     stream->AppendAttend(layer, 0, {{session, k, v, 1, q, output, lse}, ...});
//   for each token: fill k, v, q of all layers, replay
//     every few dozen: stream->Commit(session, 0); and whenever it is answered, Refresh(session)
//
// Everything is queued; nothing here waits for the device but Wait, Truncate, the destructor, and
// the first use of a session while others are being captured. A graph serves while its sessions
// grow, are sealed and change directories: lengths and addresses are read on the device. It is
// replayed on this stream alone, while the stream and its sessions are open.
//
// Arrays are device memory, dense, aligned to 16 bytes. A token that does not fit or is not finite
// raises the session's flag on the device (mapped_session.h): from then on nothing is written,
// outputs and log-sum-exps are NaN; Commit reads the flag and Wait returns its error.
#ifndef KVDEPOT_CLIENT_CUDA_MAPPED_STREAM_H_
#define KVDEPOT_CLIENT_CUDA_MAPPED_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/mapped_session.h"

// What cudaStream_t points to.
struct CUstream_st;

namespace kvdepot {

// One call at a time.
class CudaMappedStream {
 public:
  // Of the current device, which is to be current in later calls. `stream` outlives this.
  // UNIMPLEMENTED: this client was built without CUDA. FAILED_PRECONDITION: the driver is missing
  // or too old.
  static absl::StatusOr<std::unique_ptr<CudaMappedStream>> Create(CUstream_st* stream);
  // Waits for the stream. Tokens that no Commit has made the session's are lost.
  virtual ~CudaMappedStream() = default;

  struct Query {
    MappedSession* session = nullptr;
    // AppendAttend: [token][kv_head][channel] of query_tokens tokens, written first.
    const std::byte* k = nullptr;
    const std::byte* v = nullptr;
    int query_tokens = 0;
    // [query token][query_head][channel] in the session's dtype.
    const std::byte* q = nullptr;
    // [query token][query_head][channel] and [query token][query_head].
    float* output = nullptr;
    float* log_sum_exp = nullptr;
  };

  // As MappedStream's, but that errors of values and of room raise the flag. A session's tokens are
  // appended on one stream: FAILED_PRECONDITION on another, and in a capture if the session was not
  // refreshed on this stream before.
  virtual absl::Status AppendAttend(size_t layer, float scale, absl::Span<const Query> queries) = 0;
  virtual absl::Status Attend(size_t layer, float scale, absl::Span<const Query> queries) = 0;
  // Writes tokens of a prompt. As many as there is room for in one Commit.
  virtual absl::Status Append(MappedSession* session, size_t layer, const std::byte* k,
                              const std::byte* v, int count) = 0;

  // Once the work queued so far is done, commits what every layer has then. `room_tokens` as
  // MappedSession::Commit. Returns at once; errors come from Wait, and the session's flag from here
  // as well once it is known. RESOURCE_EXHAUSTED naming commits: too many are under way.
  virtual absl::Status Commit(MappedSession* session, uint32_t room_tokens) = 0;
  // Returns when all commits so far are answered: the first error of one of this session's that was
  // not returned before. DEADLINE_EXCEEDED.
  virtual absl::Status Wait(MappedSession* session, absl::Time deadline) = 0;
  // Work queued from here on uses the session's newest directory. Cheap if it does already. Not in
  // a capture (FAILED_PRECONDITION).
  virtual absl::Status Refresh(MappedSession* session) = 0;
  // Keeps `token_count` tokens of every layer, after waiting for commits under way. Tokens that no
  // Commit was sent for go without a call to the daemon, and without waiting for the device.
  virtual absl::Status Truncate(MappedSession* session, uint64_t token_count,
                                absl::Time deadline) = 0;
  // Lowers the session's flag, for work queued from here on.
  virtual absl::Status ClearError(MappedSession* session) = 0;

 private:
  class OnDevice;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CUDA_MAPPED_STREAM_H_
