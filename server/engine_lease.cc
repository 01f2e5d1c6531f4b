#include "server/engine_lease.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/session_table.h"
#include "server/take_over.h"

namespace kvdepot {
namespace {

absl::Status UnknownLease(const std::string& lease_id) {
  return absl::NotFoundError(absl::StrCat("lease_id: ", lease_id, ", unknown"));
}

// The process maps the session no more, or has no right to. `orderly`: it has promised to write no
// more. Under the engine's lock.
void EndMapping(EngineState* state, const LeaseRecord& lease,
                const std::shared_ptr<Session>& session, bool orderly, DroppedExtents* dropped)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
  if (session == nullptr) return;
  session->RemoveMapping();
  absl::optional<MappedWriter>& writer = session->writer();
  if (!writer.has_value() || writer->lease_id != lease.id) return;
  for (std::vector<ExtentRef>& room : writer->room) {
    dropped->insert(dropped->end(), room.begin(), room.end());
  }
  writer.reset();
  if (orderly) return;
  session->set_left_by_writer(true);
  state->left_by_writer.push_back(session);
}

// Ends the right; null if it has ended before. Under the engine's lock.
std::shared_ptr<LeaseStream> EndRight(EngineState* state, LeaseRecord* lease,
                                      DroppedExtents* dropped)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
  if (lease->ended()) return nullptr;
  for (const auto& [session_id, shown] : lease->shown) {
    EndMapping(state, *lease, shown.session.lock(), /*orderly=*/false, dropped);
  }
  return std::exchange(lease->stream, nullptr);
}

}  // namespace

absl::StatusOr<LeaseRecord*> FindUsableLease(EngineState* state, const std::string& tenant,
                                             const std::string& lease_id) {
  LeaseRecord* const lease = state->leases.Find(tenant, lease_id);
  if (lease == nullptr) return UnknownLease(lease_id);
  if (lease->ended()) {
    return absl::FailedPreconditionError(absl::StrCat("lease_id: ", lease_id, ", has ended"));
  }
  if (lease->peer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("lease_id: ", lease_id, ", has no life socket yet"));
  }
  return lease;
}

absl::StatusOr<std::string> OpenLease(EngineState* state, const Caller& caller,
                                      std::shared_ptr<LeaseStream> stream) {
  auto lease = std::make_unique<LeaseRecord>();
  lease->id = NewSessionId();
  lease->tenant = caller.tenant;
  lease->stream = std::move(stream);
  lease->deadline = state->clock->Now() + state->options.lease_timeout;
  MutexLock lock(state->mu);
  absl::Status accepting = state->CheckAccepting();
  if (!accepting.ok()) return accepting;
  const size_t leases_max = static_cast<size_t>(state->options.leases_per_tenant_max);
  const size_t count = state->leases.OpenCountOf(caller.tenant);
  if (count >= leases_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("leases_per_tenant_max: ", count, " of ", leases_max, " leases are open"));
  }
  const std::string id = lease->id;
  state->leases.Insert(std::move(lease));
  return id;
}

absl::Status AttachLease(EngineState* state, const std::string& lease_id,
                         std::shared_ptr<LeasePeer> peer) {
  std::shared_ptr<LeaseStream> stream;
  {
    MutexLock lock(state->mu);
    LeaseRecord* const lease = state->leases.Find(lease_id);
    if (lease == nullptr) return UnknownLease(lease_id);
    if (lease->ended() || lease->peer != nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "lease_id: ", lease_id, lease->ended() ? ", has ended" : ", has a life socket"));
    }
    lease->peer = std::move(peer);
    stream = lease->stream;
  }
  stream->OnAttached();
  return absl::OkStatus();
}

void KeepLease(EngineState* state, const std::string& lease_id) {
  MutexLock lock(state->mu);
  LeaseRecord* const lease = state->leases.Find(lease_id);
  if (lease == nullptr || lease->ended()) return;
  const absl::Time now = state->clock->Now();
  lease->deadline = now + state->options.lease_timeout;
  for (const auto& [session_id, shown] : lease->shown) {
    if (const std::shared_ptr<Session> session = shown.session.lock()) session->Touch(now);
  }
}

absl::Status RetireDirectories(EngineState* state, const std::string& lease_id,
                               const std::string& session_id, uint64_t version) {
  LetGo let_go;
  {
    MutexLock lock(state->mu);
    LeaseRecord* const lease = state->leases.Find(lease_id);
    if (lease == nullptr) return UnknownLease(lease_id);
    const auto shown = lease->shown.find(session_id);
    // It may have been unmapped while the message was on its way.
    if (shown == lease->shown.end()) return absl::OkStatus();
    std::map<uint64_t, DirectoryRef>& versions = shown->second.versions;
    if (version > shown->second.newest_version) {
      return absl::OutOfRangeError(absl::StrCat("retirement.version: ", version,
                                                ", the newest that session ", session_id,
                                                " has shown is ", shown->second.newest_version));
    }
    const auto end = versions.lower_bound(version);
    for (auto it = versions.begin(); it != end; ++it) let_go.directories.push_back(it->second);
    versions.erase(versions.begin(), end);
  }
  state->LetGoOf(std::move(let_go));
  return absl::OkStatus();
}

absl::Status ForgetSlabs(EngineState* state, const std::string& lease_id,
                         const std::vector<uint64_t>& serials) {
  LetGo let_go;
  {
    MutexLock lock(state->mu);
    LeaseRecord* const lease = state->leases.Find(lease_id);
    if (lease == nullptr) return UnknownLease(lease_id);
    for (const uint64_t serial : serials) {
      const auto slab = lease->slabs.find(serial);
      if (slab == lease->slabs.end()) {
        return absl::NotFoundError(absl::StrCat("unmapped.slabs: ", serial, ", was not mapped"));
      }
      let_go.slabs.push_back(std::move(slab->second.hold));
      lease->slabs.erase(slab);
    }
  }
  state->LetGoOf(std::move(let_go));
  return absl::OkStatus();
}

void EndLease(EngineState* state, const std::string& lease_id, const absl::Status& reason) {
  DroppedExtents dropped;
  LetGo let_go;
  std::shared_ptr<LeaseStream> stream;
  {
    MutexLock lock(state->mu);
    LeaseRecord* const lease = state->leases.Find(lease_id);
    if (lease == nullptr) return;
    stream = EndRight(state, lease, &dropped);
    // Nobody was shown anything.
    if (lease->peer == nullptr) state->leases.Erase(lease_id, &let_go);
  }
  if (stream != nullptr) stream->OnEnded(reason);
  StartTakeOvers(state);
}

void ReleaseLease(EngineState* state, const std::string& lease_id) {
  DroppedExtents dropped;
  LetGo let_go;
  std::shared_ptr<LeaseStream> stream;
  {
    MutexLock lock(state->mu);
    LeaseRecord* const lease = state->leases.Find(lease_id);
    if (lease == nullptr) return;
    stream = EndRight(state, lease, &dropped);
    state->leases.Erase(lease_id, &let_go);
  }
  state->LetGoOf(std::move(let_go));
  if (stream != nullptr) stream->OnEnded(absl::CancelledError("the process has gone"));
  StartTakeOvers(state);
}

void ExpireLeases(EngineState* state) {
  std::vector<std::string> overdue;
  {
    MutexLock lock(state->mu);
    overdue = state->leases.Overdue(state->clock->Now());
  }
  for (const std::string& lease_id : overdue) {
    EndLease(state, lease_id,
             absl::FailedPreconditionError(
                 absl::StrCat("lease_id: ", lease_id, ", has ended: no message for ",
                              absl::FormatDuration(state->options.lease_timeout))));
  }
  StartTakeOvers(state);
}

absl::Status UnmapSession(EngineState* state, const Caller& caller, const std::string& lease_id,
                          const std::string& session_id) {
  DroppedExtents dropped;
  LetGo let_go;
  {
    MutexLock lock(state->mu);
    absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, lease_id);
    if (!lease.ok()) return lease.status();
    const auto shown = (*lease)->shown.find(session_id);
    if (shown == (*lease)->shown.end()) {
      return absl::NotFoundError(
          absl::StrCat("session_id: ", session_id, ", is not mapped by lease ", lease_id));
    }
    EndMapping(state, **lease, shown->second.session.lock(), /*orderly=*/true, &dropped);
    let_go.Add(shown->second);
    (*lease)->shown.erase(shown);
    (*lease)->unmap_asked.erase(session_id);
  }
  state->LetGoOf(std::move(let_go));
  return absl::OkStatus();
}

}  // namespace kvdepot
