// Sessions that this process attends over, and extends, by itself: no call a token.
//
//   auto lease = kvdepot::Lease::Open(target, {}, deadline);
//   auto session = kvdepot::MappedSession::Open(*lease, id, {MapAccess::kWrite}, deadline);
//   kvdepot::MappedStream stream(/*threads=*/1);
//   for each token:
//     for each layer: stream.AppendAttend(layer, 0, {{session, {k, v, 1}, q, output, lse}});
//     every few dozen: session->Commit(deadline);
//
// The writer's tokens are its own until Commit; readers see the tokens of their directory, and
// newer ones after Refresh.
//
// A token that does not fit, or is not finite, is not written, and neither is any after it: it
// raises the session's *flag*. From then on outputs and log-sum-exps of the session are NaN, and
// Commit returns the flag's error, until ClearError: RESOURCE_EXHAUSTED naming room, or
// INVALID_ARGUMENT naming the value. Nothing is ever written outside the session's room.
//
// Where the daemon's slabs are memory of a GPU, a CudaMappedStream (cuda_mapped_stream.h) appends,
// commits, truncates and attends; the calls below that do so here are FAILED_PRECONDITION then, and
// what the host knows of layers is as of the last commit that the stream has come to.
//
// Errors of calls to the daemon are those of proto/kvdepot/v1/kv_depot_service.proto.
#ifndef KVDEPOT_CLIENT_MAPPED_SESSION_H_
#define KVDEPOT_CLIENT_MAPPED_SESSION_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/lease.h"
#include "client/mapped_directory.h"
#include "gpu/attend_cpu.h"
#include "gpu/backend.h"
#include "gpu/worker_pool.h"

namespace kvdepot {

enum class MapAccess { kRead, kWrite };

// Thread-safe, but for this: one thread at a time appends to a session, truncates it or clears its
// flag. Others may attend, commit and refresh meanwhile.
class MappedSession {
 public:
  struct Options {
    MapAccess access = MapAccess::kRead;
    // Room for tokens in every layer, as the writer. 0: the daemon's default.
    uint32_t room_tokens = 0;
  };

  // FAILED_PRECONDITION: another writer has it, or the lease has ended.
  static absl::StatusOr<std::unique_ptr<MappedSession>> Open(std::shared_ptr<Lease> lease,
                                                             const std::string& session_id,
                                                             const Options& options,
                                                             absl::Time deadline);
  // Unmaps it, waiting up to a second for the daemon. Nothing uses it any more.
  ~MappedSession();
  MappedSession(const MappedSession&) = delete;
  MappedSession& operator=(const MappedSession&) = delete;

  const std::string& id() const { return id_; }
  const MappedShape& shape() const { return shape_; }
  // UUID of the GPU that its memory is of; empty: host memory.
  const std::string& device() const { return lease_->device(); }
  // Of the directory in use.
  uint64_t committed_token_count() const;
  uint64_t generation() const;
  uint64_t directory_version() const;
  // What the layer holds, the writer's own tokens included.
  uint64_t token_count(size_t layer) const;
  // How many more tokens fit in every layer before a Commit.
  uint64_t room_tokens() const;

  // OK, or why the flag is up.
  absl::Status error() const;
  void ClearError();

  // Writes tokens behind the layer's: k and v are [token][kv_head][channel] in the session's dtype,
  // dense. FAILED_PRECONDITION: not the writer. INVALID_ARGUMENT: no such layer. What does not fit
  // or is not finite raises the flag, which is not this call's error.
  absl::Status Append(size_t layer, const DenseTokens& tokens);

  // Makes the tokens that every layer has the session's, and takes the next directory. Layers that
  // are ahead keep their tokens. The daemon seals tokens behind its answer, so that directories
  // show them sealed, smaller and faster to attend over, from the next Commit on; a Commit without
  // new tokens does so too, for a writer that will pause. FAILED_PRECONDITION: not the writer.
  // `room_tokens` as in Options.
  absl::Status Commit(absl::Time deadline, uint32_t room_tokens = 0);
  // Takes the newest directory. The writer needs it after nothing but Truncate, which calls it.
  absl::Status Refresh(absl::Time deadline);
  // Keeps `token_count` tokens of every layer. Tokens that no Commit was sent for go without a call
  // to the daemon. FAILED_PRECONDITION naming commit: the daemon has not answered a Commit of more
  // tokens, which readers may see already; commit again first.
  absl::Status Truncate(uint64_t token_count, absl::Time deadline);

 private:
  friend class MappedStream;
  friend class CudaMappedStream;
  using DirectoryRef = std::shared_ptr<const MappedDirectory>;

  // Whoever uses directories of the session beside calls on it.
  class User {
   public:
    virtual ~User() = default;
    // Lets go of them, and waits for whatever reads what they list: the session is about to end.
    virtual void Release(MappedSession* session) = 0;
  };

  // What one attend reads. Keeps the directory, which is not retired meanwhile.
  struct View {
    DirectoryRef directory;
    std::vector<TokenRun> runs;
    uint64_t token_count = 0;
    bool flagged = false;
  };

  MappedSession(std::shared_ptr<Lease> lease, std::string id, const Options& options);

  // Versions that something in this process may still use. Shared with directories, which tell it
  // of their end and may outlive the session.
  class Versions;

  absl::Status Map(absl::Time deadline, uint64_t have_version);
  // `message` answers a request with `base` as have_version.
  absl::Status Adopt(const v1::MappedDirectory& message, const DirectoryRef& base);
  DirectoryRef directory() const;
  absl::Status CheckLayer(size_t layer) const;
  absl::Status CheckWriter() const;
  absl::Status CheckHostMemory() const;
  // Commits what written_ says.
  absl::Status CommitWritten(absl::Time deadline, uint32_t room_tokens);
  // For streams of a GPU, whose device knows what was written: takes that into written_; raises the
  // error unless there is one; and whether the tokens behind `token_count` go without a call.
  void TakeWritten(absl::Span<const uint64_t> token_counts);
  void RaiseError(const absl::Status& status);
  bool DropUnsent(uint64_t token_count);
  // Keeps tokens of what written_ says.
  absl::Status TruncateWritten(uint64_t token_count, absl::Time deadline);
  // INVALID_ARGUMENT or RESOURCE_EXHAUSTED, which raise the flag; nothing is written then.
  absl::Status Write(size_t layer, const DenseTokens& tokens);
  View ViewOf(size_t layer) const;

  const std::shared_ptr<Lease> lease_;
  const std::string id_;
  const Options options_;
  MappedShape shape_;
  std::shared_ptr<Versions> versions_;

  mutable std::mutex mutex_;
  // All below are guarded by mutex_.
  DirectoryRef directory_;
  // Tokens of each layer; at least sent_token_count_.
  std::vector<uint64_t> written_;
  // Of the last Commit of this generation, whatever became of it: readers may see so many, so none
  // of their slots is written again. At least the directory's.
  uint64_t sent_token_count_ = 0;
  absl::Status error_;
  std::set<User*> users_;
  // The stream that its tokens are appended on; null: none yet.
  const User* appender_ = nullptr;
};

// Attends over mapped sessions in this process, as their kind of memory does it: on the CPU with
// threads of its own, and a call returns when its outputs are there. One call at a time.
class MappedStream {
 public:
  // `threads` >= 1, the caller's included.
  explicit MappedStream(int threads) : pool_(threads), attention_(&pool_) {}

  struct Query {
    MappedSession* session = nullptr;
    // AppendAttend: written first; its count is that of the queries. Attend: not used.
    DenseTokens tokens;
    int query_tokens = 0;
    // [query token][query_head][channel] in the session's dtype.
    const std::byte* q = nullptr;
    // [query token][query_head][channel] and [query token][query_head].
    float* output = nullptr;
    float* log_sum_exp = nullptr;
  };

  // `scale` 0: 1 / sqrt(head_dim). INVALID_ARGUMENT or FAILED_PRECONDITION naming the query before
  // anything is written. Queries stand behind the layer's last tokens, as many as there are
  // queries.
  absl::Status AppendAttend(size_t layer, float scale, absl::Span<const Query> queries);
  absl::Status Attend(size_t layer, float scale, absl::Span<const Query> queries);

 private:
  absl::Status Check(size_t layer, absl::Span<const Query> queries, bool appends) const;
  // The queries have passed Check.
  void Compute(size_t layer, float scale, absl::Span<const Query> queries);

  WorkerPool pool_;
  CpuAttention attention_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_MAPPED_SESSION_H_
