#include "server/engine_map.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/commit_check.h"
#include "server/engine_lease.h"
#include "server/engine_work.h"
#include "server/layer_addition.h"
#include "server/map_room.h"
#include "server/mutation_right.h"
#include "server/sealer.h"
#include "server/take_over.h"

namespace kvdepot {
namespace {

// The lease of a call that maps or commits.
absl::StatusOr<LeaseRecord*> Admitted(EngineState* state, const std::string& tenant,
                                      const std::string& lease_id, uint64_t room_tokens)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
  const uint64_t most = static_cast<uint64_t>(state->options.room_tokens_max);
  if (room_tokens > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("room_tokens: ", room_tokens, ", must be at most ", most));
  }
  const absl::Status accepting = state->CheckAccepting();
  if (!accepting.ok()) return accepting;
  return FindUsableLease(state, tenant, lease_id);
}

// RESOURCE_EXHAUSTED if the lease holds as many directories of the session as it may.
absl::Status CheckVersions(const EngineState& state, const LeaseRecord& lease,
                           const std::string& session_id) {
  const auto shown = lease.shown.find(session_id);
  if (shown == lease.shown.end()) return absl::OkStatus();
  const size_t most = static_cast<size_t>(state.options.directory_versions_max);
  if (shown->second.versions.size() < most) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("directory_versions_max: ", shown->second.versions.size(), " of ", most,
                   " versions of session ", session_id, " are not retired"));
}

// RESOURCE_EXHAUSTED if the lease keeps what it was asked to unmap.
absl::Status CheckUnmapped(const EngineState& state, const LeaseRecord& lease) {
  if (lease.unmap_asked.empty() || state.clock->Now() < lease.unmap_deadline) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "unmap_timeout: ", absl::FormatDuration(state.options.unmap_timeout), " have passed since ",
      "memory was short and lease ", lease.id, " was asked to unmap; it maps ",
      lease.unmap_asked.size(), " of those sessions, one is ", *lease.unmap_asked.begin()));
}

// Shows the newest directory of a session to a lease: from here on the lease holds it.
class Publication {
 public:
  Publication(EngineState* state, std::string tenant, std::string lease_id,
              std::shared_ptr<Session> session, uint64_t have_version)
      : state_(state),
        tenant_(std::move(tenant)),
        lease_id_(std::move(lease_id)),
        session_(std::move(session)),
        have_version_(have_version) {}

  absl::StatusOr<MapReply> Publish() {
    MapReply reply;
    // A copy that was begun, by a take-over or a truncation, is there before another process looks;
    // and none comes to extents that it is about to write.
    state_->backend->Synchronize();
    absl::Status status = Show(&reply);
    if (status.ok()) status = SendSlabs(&reply);
    if (!status.ok()) return status;
    return reply;
  }

 private:
  absl::Status Show(MapReply* reply) {
    MutexLock lock(state_->mu);
    absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state_, tenant_, lease_id_);
    if (!lease.ok()) return lease.status();
    if (session_->deleted()) {
      return absl::NotFoundError(
          absl::StrCat("session_id: ", session_->id(), ", deleted meanwhile"));
    }
    const DirectoryRef newest = NewestDirectory(session_.get());
    auto [shown, is_new] = (*lease)->shown.try_emplace(session_->id());
    if (is_new) {
      shown->second.session = session_;
      session_->AddMapping();
    }
    const auto base = shown->second.versions.find(have_version_);
    if (base != shown->second.versions.end()) reply->base = base->second;
    if (reply->base == nullptr) reply->session = session_->Info();
    if (reply->base != newest) reply->directory = newest;
    shown->second.versions[newest->version] = newest;
    shown->second.newest_version = newest->version;
    reply->for_writer = session_->writer().has_value() && session_->writer()->lease_id == lease_id_;
    FindSlabs(**lease, *newest, reply->for_writer);
    peer_ = (*lease)->peer;
    return absl::OkStatus();
  }

  // Those that the lease was not sent yet.
  void FindSlabs(const LeaseRecord& lease, const Directory& directory, bool with_room) {
    const auto add = [&](const ExtentRef& extent, bool writable) {
      const uint64_t serial = extent->memory->place().serial;
      if (lease.slabs.count(serial) == 0) missing_[serial] = writable;
    };
    for (const Directory::Layer& layer : directory.layers) {
      for (size_t i = 0; i < layer.extents.size(); ++i) {
        add(layer.extents[i], layer.runs[i].form == TokenRun::Form::kExact);
      }
      if (!with_room) continue;
      for (const ExtentRef& extent : layer.room) add(extent, true);
    }
  }

  // Without the lock: a slab that the directory lists stays, and one worker sends them all.
  absl::Status SendSlabs(MapReply* reply) {
    for (const auto& [serial, writable] : missing_) {
      absl::StatusOr<ExportedSlab> slab = state_->backend->ExportSlab(serial);
      absl::Status status = state_->Report(MappingOperation::kExport, slab.status());
      if (!status.ok()) return status;
      const SlabNotice notice{serial,
                              slab->region.size_bytes,
                              writable,
                              slab->region.kind,
                              slab->region.device,
                              slab->region.handle};
      Hold(serial, {std::move(slab->hold), notice.size_bytes});
      status = state_->Report(MappingOperation::kSend, peer_->SendSlab(notice, slab->region));
      if (!status.ok()) {
        LetGoOf(serial);
        return status;
      }
      reply->slabs.push_back(notice);
    }
    return absl::OkStatus();
  }

  // Before it is sent: the process may say at once that it has let go of it.
  void Hold(uint64_t serial, LeaseRecord::MappedSlab slab) {
    MutexLock lock(state_->mu);
    // The process may have gone, and its lease with it: then nobody maps what is sent.
    LeaseRecord* const lease = state_->leases.Find(lease_id_);
    if (lease != nullptr) lease->slabs.emplace(serial, std::move(slab));
  }
  void LetGoOf(uint64_t serial) {
    LeaseRecord::MappedSlab slab;
    MutexLock lock(state_->mu);
    LeaseRecord* const lease = state_->leases.Find(lease_id_);
    if (lease == nullptr) return;
    const auto found = lease->slabs.find(serial);
    if (found == lease->slabs.end()) return;
    slab = std::move(found->second);
    lease->slabs.erase(found);
  }

  EngineState* const state_;
  const std::string tenant_;
  const std::string lease_id_;
  const std::shared_ptr<Session> session_;
  const uint64_t have_version_;
  // By serial number, whether a mapping of it is writable.
  std::map<uint64_t, bool> missing_;
  std::shared_ptr<LeasePeer> peer_;
};

class MapWork final : public EngineWork<MapReply> {
 public:
  MapWork(EngineState* state, const Caller& caller, MapRequest request, Engine::Done<MapReply> done)
      : EngineWork(state, Operation::kMap, caller, std::move(done)), request_(std::move(request)) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    const absl::StatusOr<LeaseRecord*> lease =
        Admitted(state(), caller().tenant, request_.lease_id, request_.room_tokens);
    if (!lease.ok()) return lease.status();
    absl::Status status = CheckUnmapped(*state(), **lease);
    if (!status.ok()) return status;
    absl::StatusOr<std::shared_ptr<Session>> session =
        state()->Find(caller().tenant, request_.session_id);
    if (!session.ok()) return session.status();
    session_ = *std::move(session);
    session_->Touch(state()->clock->Now());
    status = CheckVersions(*state(), **lease, session_->id());
    if (!status.ok() || !request_.write) return status;
    absl::StatusOr<MutationRight> right =
        MutationRight::TakeToMap(state(), session_, request_.lease_id);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return absl::OkStatus();
  }

 private:
  absl::optional<absl::StatusOr<MapReply>> Step() override {
    if (request_.write) {
      absl::Status status = BecomeWriter();
      if (!status.ok()) return status;
      TopUpRoom(state(), session_.get());
    }
    return Publication(state(), caller().tenant, request_.lease_id, session_, request_.have_version)
        .Publish();
  }

  absl::Status BecomeWriter() {
    {
      MutexLock lock(state()->mu);
      if (session_->writer().has_value()) {
        if (request_.room_tokens > 0) session_->writer()->room_tokens = request_.room_tokens;
        return absl::OkStatus();
      }
    }
    absl::Status status = TakeOver(state(), session_.get());
    if (!status.ok()) return status;
    MutexLock lock(state()->mu);
    const absl::StatusOr<LeaseRecord*> lease =
        FindUsableLease(state(), caller().tenant, request_.lease_id);
    if (!lease.ok()) return lease.status();
    // The lease's end looks for its rights among what it was shown.
    auto [shown, is_new] = (*lease)->shown.try_emplace(session_->id());
    if (is_new) {
      shown->second.session = session_;
      session_->AddMapping();
    }
    session_->writer() =
        MappedWriter{request_.lease_id,
                     request_.room_tokens > 0 ? request_.room_tokens
                                              : static_cast<uint64_t>(state()->options.room_tokens),
                     std::vector<std::vector<ExtentRef>>(session_->layers().size())};
    return absl::OkStatus();
  }

  void Release() override {
    right_ = MutationRight();
    session_ = nullptr;
  }

  const MapRequest request_;
  std::shared_ptr<Session> session_;
  MutationRight right_;
};

class CommitWork final : public EngineWork<MapReply> {
 public:
  CommitWork(EngineState* state, const Caller& caller, CommitRequest request,
             Engine::Done<MapReply> done)
      : EngineWork(state, Operation::kCommit, caller, std::move(done)),
        request_(std::move(request)) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    const absl::StatusOr<LeaseRecord*> lease =
        Admitted(state(), caller().tenant, request_.lease_id, request_.room_tokens);
    if (!lease.ok()) return lease.status();
    absl::StatusOr<MutationRight> right = MutationRight::TakeAsWriter(
        state(), caller().tenant, request_.session_id, request_.generation, request_.lease_id);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    absl::Status status = CheckVersions(*state(), **lease, request_.session_id);
    if (!status.ok()) return status;
    return CheckTokenCount();
  }

 private:
  absl::Status CheckTokenCount() const {
    const Session& session = *right_.session();
    const uint64_t committed = session.committed_token_count();
    const uint64_t most = committed + RoomTokens(session);
    if (request_.token_count >= committed && request_.token_count <= most) return absl::OkStatus();
    return absl::OutOfRangeError(absl::StrCat(
        "token_count: ", request_.token_count, ", must be from the committed count, which is ",
        committed, ", to the end of the room, which is ", most));
  }

  // What earlier Commits left is sealed first, so that no more than one waits. What this one makes
  // due is sealed behind its answer, unless the room for more tokens must come from that.
  absl::optional<absl::StatusOr<MapReply>> Step() override {
    Session* const session = right_.session();
    if (!sealer_.has_value()) sealer_.emplace(state(), AllLayers(session));
    if (sealer_->RunTurn()) return absl::nullopt;
    if (stored_) {
      TopUpRoom(state(), session);
    } else {
      absl::Status status = Store();
      if (!status.ok()) return status;
      stored_ = true;
      sealer_.emplace(state(), AllLayers(session));
      if (!TopUpRoomIfFree(state(), session)) return absl::nullopt;
    }
    WantBackgroundSeal();
    return Publication(state(), caller().tenant, request_.lease_id, right_.shared_session(),
                       request_.have_version)
        .Publish();
  }

  void WantBackgroundSeal() {
    MutexLock lock(state()->mu);
    right_.session()->WantBackgroundSeal();
  }

  absl::Status Store() {
    Session* const session = right_.session();
    absl::Status status = CheckCommitted(state(), *session, request_.token_count);
    if (!status.ok()) return status;
    const absl::Time now = state()->clock->Now();
    DroppedExtents dropped;
    MutexLock lock(state()->mu);
    absl::optional<MappedWriter>& writer = session->writer();
    if (!writer.has_value() || writer->lease_id != request_.lease_id) {
      return absl::FailedPreconditionError(
          absl::StrCat("lease_id: ", request_.lease_id, ", has ended"));
    }
    if (request_.room_tokens > 0) writer->room_tokens = request_.room_tokens;
    const uint64_t committed = session->committed_token_count();
    const uint64_t tokens = request_.token_count - committed;
    for (size_t i = 0; i < session->layers().size(); ++i) {
      Layer& layer = session->layers()[i];
      std::vector<ExtentRef>& room = writer->room[i];
      const auto used = room.begin() + static_cast<std::ptrdiff_t>(layer.ExtentsFor(tokens).size());
      layer.Append(tokens, std::vector<ExtentRef>(room.begin(), used), nullptr);
      room.erase(room.begin(), used);
      const LayerAddition addition{committed, tokens};
      DecideDuringAddition(state()->seal_rule, addition, now, &layer);
      const DroppedExtents gone =
          EndAddition(state()->seal_rule, addition, request_.token_count, now, &layer);
      dropped.insert(dropped.end(), gone.begin(), gone.end());
    }
    state()->observer->OnAppended(tokens * session->layers().size());
    return absl::OkStatus();
  }

  void Release() override { right_ = MutationRight(); }

  const CommitRequest request_;
  MutationRight right_;
  bool stored_ = false;
  absl::optional<Sealer> sealer_;
};

}  // namespace

void StartMap(EngineState* state, const Caller& caller, MapRequest request,
              Engine::Done<MapReply> done) {
  Submit<MapReply>(state,
                   std::make_unique<MapWork>(state, caller, std::move(request), std::move(done)));
}

void StartCommit(EngineState* state, const Caller& caller, CommitRequest request,
                 Engine::Done<MapReply> done) {
  Submit<MapReply>(
      state, std::make_unique<CommitWork>(state, caller, std::move(request), std::move(done)));
}

}  // namespace kvdepot
