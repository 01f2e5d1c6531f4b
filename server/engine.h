// The engine: sessions, their memory and the work on them, in domain types. It knows no gRPC and no
// protobuf.
//
// Threads. Any thread may call any method. Calls without a callback take the metadata lock briefly
// and return. Calls with a `done` callback validate and enqueue on the caller's thread (an error
// there runs `done` before returning) and finish on the device worker (a brief Attend that finds
// the device idle: on the calling thread), which runs `done` exactly once, without a lock held.
// Work of tenants is taken in turn, one piece of bounded length at a time. One lock guards all
// metadata and is never held while a backend computes. At most one mutation of a session is in
// flight; another one is UNAVAILABLE.
//
// Errors: proto/kvdepot/v1/kv_depot_service.proto lists one meaning per code. An error names field,
// value and limit, and leaves everything as it was.
#ifndef KVDEPOT_SERVER_ENGINE_H_
#define KVDEPOT_SERVER_ENGINE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gpu/backend.h"
#include "gpu/slab_pool.h"
#include "server/calibration_store.h"
#include "server/clock.h"
#include "server/engine_observer.h"
#include "server/engine_options.h"
#include "server/lease_table.h"
#include "server/map_reply.h"
#include "server/mapping_types.h"
#include "server/session_types.h"

namespace kvdepot {

// What sessions hold, by their codec, for metrics.
struct EngineTotals {
  struct Bytes {
    uint64_t logical = 0;
    uint64_t stored = 0;
  };
  std::array<Bytes, kCodecCount> by_codec;  // as CodecIndex
  // Over all sessions, each counted once whatever its number of layers.
  uint64_t committed_tokens = 0;

  Bytes& Of(Codec codec) { return by_codec[CodecIndex(codec)]; }
  const Bytes& Of(Codec codec) const { return by_codec[CodecIndex(codec)]; }
};

class Engine {
 public:
  template <typename T>
  using Done = std::function<void(absl::StatusOr<T>)>;

  // One Append call: holds the session's right of mutation until `done` of Finish is about to run,
  // or it is destroyed. Chunks are passed one after the other: the next call may follow once `done`
  // of the one before has run. May be destroyed at any time before the engine, also inside `done`.
  class Addition {
   public:
    virtual ~Addition() = default;
    // Stores one chunk whole or not at all; seals what the addition so far already decides.
    virtual void Append(TokenChunk chunk, Done<LayerState> done) = 0;
    // Ends the addition and seals the rest. Destroying an Addition without Finish ends it as well:
    // chunks stay, and what a Finish would have sealed is sealed with the next addition.
    virtual void Finish(Done<std::vector<std::pair<int, LayerState>>> done) = 0;
  };

  // `options` are valid (EngineOptions::Problems). The last three outlive the engine.
  static std::unique_ptr<Engine> Make(const EngineOptions& options,
                                      std::unique_ptr<Backend> backend,
                                      CalibrationStore* calibrations, Clock* clock,
                                      EngineObserver* observer);
  // Refuses what is still queued (UNAVAILABLE) and waits for what has begun.
  virtual ~Engine() = default;

  virtual absl::StatusOr<SessionInfo> CreateSession(const Caller& caller, SessionSpec spec,
                                                    bool* created) = 0;
  // `session_id`, or `name` if that is empty.
  virtual absl::StatusOr<SessionInfo> GetSession(const Caller& caller,
                                                 const std::string& session_id,
                                                 const std::string& name) = 0;
  // Up to `limit` sessions whose names follow `after_name`, in order of name.
  virtual std::vector<SessionInfo> ListSessions(const Caller& caller, const std::string& after_name,
                                                size_t limit) = 0;
  // What is in flight on the session finishes; its memory is free then.
  virtual absl::Status DeleteSession(const Caller& caller, const std::string& session_id) = 0;
  virtual absl::StatusOr<SessionInfo> TouchSession(const Caller& caller,
                                                   const std::string& session_id) = 0;
  virtual void TruncateSession(const Caller& caller, const std::string& session_id,
                               uint64_t generation, uint64_t token_count,
                               Done<SessionInfo> done) = 0;
  // Fails with RESOURCE_EXHAUSTED where memory for a segment is lacking; what was sealed by then
  // stays sealed.
  virtual void SealSession(const Caller& caller, const std::string& session_id, uint64_t generation,
                           Done<SessionInfo> done) = 0;

  // Stores it for the caller's tenant alone, which is charged for it. Errors as
  // CalibrationStore::Put, and RESOURCE_EXHAUSTED naming the limit of memory.
  virtual absl::Status PutCalibration(const Caller& caller, const Calibration& calibration) = 0;

  virtual absl::StatusOr<std::unique_ptr<Addition>> BeginAppend(const Caller& caller,
                                                                const std::string& session_id,
                                                                uint64_t generation) = 0;
  // `scale` 0: 1 / sqrt(head_dim).
  virtual void Attend(const Caller& caller, int layer, float scale,
                      std::vector<AttendQuery> queries, Done<std::vector<AttendResult>> done) = 0;
  // All steps or none: every one is checked before the first token is stored.
  virtual void Decode(const Caller& caller, int layer, float scale, std::vector<DecodeStep> steps,
                      Done<std::vector<AttendResult>> done) = 0;
  // The range's beginning, of at most EngineOptions::fetch_bytes_max, one token at least. The whole
  // range must be there.
  virtual void Fetch(const Caller& caller, FetchRange range, Done<FetchedTokens> done) = 0;

  // Leases (lease_table.h). `stream` is told what becomes of the lease; its last call, OnEnded,
  // always comes. RESOURCE_EXHAUSTED naming leases_per_tenant_max.
  virtual absl::StatusOr<std::string> OpenLease(const Caller& caller,
                                                std::shared_ptr<LeaseStream> stream) = 0;
  // The lease's process is there, and `peer` reaches it. NOT_FOUND, or FAILED_PRECONDITION if it
  // has ended or has a peer.
  virtual absl::Status AttachLease(const std::string& lease_id,
                                   std::shared_ptr<LeasePeer> peer) = 0;
  // A sign of life.
  virtual void KeepLease(const std::string& lease_id) = 0;
  // Its process uses no directory of the session below `version` any more. OUT_OF_RANGE: none of
  // that version was shown.
  virtual absl::Status RetireDirectories(const std::string& lease_id, const std::string& session_id,
                                         uint64_t version) = 0;
  // Its process has unmapped them. NOT_FOUND: it had not mapped one of them.
  virtual absl::Status ForgetSlabs(const std::string& lease_id,
                                   const std::vector<uint64_t>& serials) = 0;
  // The right ends; what the process was shown stays held. Nothing if it has ended.
  virtual void EndLease(const std::string& lease_id, const absl::Status& reason) = 0;
  // The process has let go of all, or is gone: nothing is held for it any more.
  virtual void ReleaseLease(const std::string& lease_id) = 0;
  // Ends leases without a message for lease_timeout, and goes on with sessions that their writers
  // left; the daemon calls it once a second.
  virtual void ExpireLeases() = 0;

  // Shows a session's newest directory to a lease, which may become its writer; sends the slabs
  // that the lease has not mapped to its peer.
  virtual void MapSession(const Caller& caller, MapRequest request, Done<MapReply> done) = 0;
  virtual void Commit(const Caller& caller, CommitRequest request, Done<MapReply> done) = 0;
  virtual absl::Status UnmapSession(const Caller& caller, const std::string& lease_id,
                                    const std::string& session_id) = 0;

  // Memory that the lease's process shows, for calls that read and write it in place.
  // ALREADY_EXISTS, RESOURCE_EXHAUSTED naming buffers_per_lease_max or
  // buffer_bytes_per_tenant_max, errors as LeasePeer's and Backend::MapBuffer's.
  virtual absl::Status RegisterBuffer(const Caller& caller, BufferRequest request) = 0;
  // `done` comes once calls that have found it are over and it is unmapped. NOT_FOUND.
  virtual void UnregisterBuffer(const Caller& caller, const std::string& lease_id, uint64_t buffer,
                                std::function<void(const absl::Status&)> done) = 0;
  // NOT_FOUND, or FAILED_PRECONDITION if the lease has ended.
  virtual absl::StatusOr<BufferRef> FindBuffer(const Caller& caller, const std::string& lease_id,
                                               uint64_t buffer) = 0;

  // From now on new work is UNAVAILABLE; returns when what was accepted is done or the deadline has
  // passed.
  virtual void Drain(absl::Time deadline) = 0;
  // Deletes sessions whose time has come; the daemon calls it once a second.
  virtual void ExpireSessions() = 0;

  // How many bytes all sessions together may take from now on. Less than they take is fine: what
  // they hold stays, and whoever needs more is refused until enough is given up.
  virtual void SetBudget(uint64_t budget_bytes) = 0;
  virtual uint64_t budget_bytes() const = 0;
  // What one tenant may use.
  virtual uint64_t tenant_quota_bytes() const = 0;
  virtual SlabUsage slab_usage() const = 0;
  // What a budget in per cent is a part of.
  virtual uint64_t device_memory_bytes() const = 0;

  // Bytes in use, over all tenants and of one.
  virtual uint64_t used_bytes() const = 0;
  virtual uint64_t tenant_used_bytes(const std::string& tenant) const = 0;
  virtual size_t session_count() const = 0;
  // Takes the lock once a session: not one moment's picture.
  virtual EngineTotals totals() = 0;
  // Those by which layers of the commonest shape, 8 KV heads of 128 channels, can be stored.
  virtual std::vector<Codec> codecs() const = 0;

  virtual MappingUsage mapping_usage() const = 0;
  // Bytes freed, in all, because a process had let go of what it was shown.
  virtual uint64_t reclaimed_bytes() const = 0;

  // OK, or INTERNAL with what ended the device's use: then nothing is answered any more.
  virtual absl::Status health() const = 0;

  // Aborts unless counts, positions, extents and charges of every session agree with each other and
  // with the ledger, recomputed from scratch.
  virtual void CheckInvariants() = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_H_
