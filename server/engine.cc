#include "server/engine.h"

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"
#include "server/engine_append.h"
#include "server/engine_attend.h"
#include "server/engine_buffer.h"
#include "server/engine_decode.h"
#include "server/engine_fetch.h"
#include "server/engine_lease.h"
#include "server/engine_map.h"
#include "server/engine_seal.h"
#include "server/engine_state.h"
#include "server/engine_truncate.h"
#include "server/session_spec.h"

namespace kvdepot {
namespace {

using SessionRef = std::shared_ptr<Session>;

// Calls that need no device are here, the others in engine_*.cc.
class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineOptions& options, std::unique_ptr<Backend> backend,
             CalibrationStore* calibrations, Clock* clock, EngineObserver* observer)
      : state_(options, std::move(backend), calibrations, clock, observer) {}

  absl::StatusOr<SessionInfo> CreateSession(const Caller& caller, SessionSpec spec,
                                            bool* created) override;
  absl::StatusOr<SessionInfo> GetSession(const Caller& caller, const std::string& session_id,
                                         const std::string& name) override;
  std::vector<SessionInfo> ListSessions(const Caller& caller, const std::string& after_name,
                                        size_t limit) override;
  absl::Status DeleteSession(const Caller& caller, const std::string& session_id) override;
  absl::StatusOr<SessionInfo> TouchSession(const Caller& caller,
                                           const std::string& session_id) override;
  absl::Status PutCalibration(const Caller& caller, const Calibration& calibration) override;
  void Drain(absl::Time deadline) override;
  void ExpireSessions() override;
  size_t session_count() const override;
  EngineTotals totals() override;
  std::vector<Codec> codecs() const override;
  void CheckInvariants() override;

  void TruncateSession(const Caller& caller, const std::string& session_id, uint64_t generation,
                       uint64_t token_count, Done<SessionInfo> done) override {
    StartTruncate(&state_, caller, session_id, generation, token_count, std::move(done));
  }
  void SealSession(const Caller& caller, const std::string& session_id, uint64_t generation,
                   Done<SessionInfo> done) override {
    StartSeal(&state_, caller, session_id, generation, std::move(done));
  }
  absl::StatusOr<std::unique_ptr<Addition>> BeginAppend(const Caller& caller,
                                                        const std::string& session_id,
                                                        uint64_t generation) override {
    return BeginAddition(&state_, caller, session_id, generation);
  }
  void Attend(const Caller& caller, int layer, float scale, std::vector<AttendQuery> queries,
              Done<std::vector<AttendResult>> done) override {
    StartAttend(&state_, caller, layer, scale, std::move(queries), std::move(done));
  }
  void Decode(const Caller& caller, int layer, float scale, std::vector<DecodeStep> steps,
              Done<std::vector<AttendResult>> done) override {
    StartDecode(&state_, caller, layer, scale, std::move(steps), std::move(done));
  }
  void Fetch(const Caller& caller, FetchRange range, Done<FetchedTokens> done) override {
    StartFetch(&state_, caller, std::move(range), std::move(done));
  }

  absl::StatusOr<std::string> OpenLease(const Caller& caller,
                                        std::shared_ptr<LeaseStream> stream) override {
    return kvdepot::OpenLease(&state_, caller, std::move(stream));
  }
  absl::Status AttachLease(const std::string& lease_id, std::shared_ptr<LeasePeer> peer) override {
    return state_.Report(MappingOperation::kAttach,
                         kvdepot::AttachLease(&state_, lease_id, std::move(peer)));
  }
  void KeepLease(const std::string& lease_id) override { kvdepot::KeepLease(&state_, lease_id); }
  absl::Status RetireDirectories(const std::string& lease_id, const std::string& session_id,
                                 uint64_t version) override {
    return state_.Report(MappingOperation::kRetire,
                         kvdepot::RetireDirectories(&state_, lease_id, session_id, version));
  }
  absl::Status ForgetSlabs(const std::string& lease_id,
                           const std::vector<uint64_t>& serials) override {
    return state_.Report(MappingOperation::kForget,
                         kvdepot::ForgetSlabs(&state_, lease_id, serials));
  }
  void EndLease(const std::string& lease_id, const absl::Status& reason) override {
    kvdepot::EndLease(&state_, lease_id, reason);
  }
  void ReleaseLease(const std::string& lease_id) override {
    kvdepot::ReleaseLease(&state_, lease_id);
  }
  void ExpireLeases() override { kvdepot::ExpireLeases(&state_); }
  void MapSession(const Caller& caller, MapRequest request, Done<MapReply> done) override {
    StartMap(&state_, caller, std::move(request), std::move(done));
  }
  void Commit(const Caller& caller, CommitRequest request, Done<MapReply> done) override {
    StartCommit(&state_, caller, std::move(request), std::move(done));
  }
  absl::Status UnmapSession(const Caller& caller, const std::string& lease_id,
                            const std::string& session_id) override {
    return kvdepot::UnmapSession(&state_, caller, lease_id, session_id);
  }
  absl::Status RegisterBuffer(const Caller& caller, BufferRequest request) override {
    return state_.Report(MappingOperation::kRegister,
                         kvdepot::RegisterBuffer(&state_, caller, std::move(request)));
  }
  void UnregisterBuffer(const Caller& caller, const std::string& lease_id, uint64_t buffer,
                        std::function<void(const absl::Status&)> done) override {
    kvdepot::UnregisterBuffer(&state_, caller, lease_id, buffer, std::move(done));
  }
  absl::StatusOr<BufferRef> FindBuffer(const Caller& caller, const std::string& lease_id,
                                       uint64_t buffer) override {
    return kvdepot::FindBuffer(&state_, caller, lease_id, buffer);
  }

  void SetBudget(uint64_t budget_bytes) override {
    state_.budget.SetBudget(budget_bytes);
    state_.backend->SetBudget(budget_bytes);
  }
  uint64_t budget_bytes() const override { return state_.budget.budget_bytes(); }
  uint64_t tenant_quota_bytes() const override {
    const uint64_t quota = state_.options.tenant_quota_bytes;
    return quota == 0 ? budget_bytes() : quota;
  }
  absl::Status health() const override { return state_.backend->health(); }
  uint64_t device_memory_bytes() const override { return state_.backend->memory_bytes(); }
  SlabUsage slab_usage() const override { return state_.backend->slab_usage(); }

  MappingUsage mapping_usage() const override {
    MutexLock lock(state_.mu);
    return state_.leases.usage();
  }
  uint64_t reclaimed_bytes() const override { return state_.reclaimed_bytes.load(); }

  uint64_t used_bytes() const override { return state_.budget.used_bytes(); }
  uint64_t tenant_used_bytes(const std::string& tenant) const override {
    return state_.budget.tenant_used_bytes(tenant);
  }

 private:
  // The spec's second moments, one entry a layer, if the session will have a use for them.
  absl::StatusOr<std::vector<QueryMomentsRef>> TakeMoments(const std::string& tenant,
                                                           SessionSpec* spec);

  EngineState state_;
};

absl::StatusOr<std::vector<QueryMomentsRef>> EngineImpl::TakeMoments(const std::string& tenant,
                                                                     SessionSpec* spec) {
  std::vector<std::vector<float>> moments = std::exchange(spec->query_second_moments, {});
  std::vector<QueryMomentsRef> charged(spec->layers.size());
  if (spec->codec != Codec::kPlanes || !spec->calibration.empty()) return charged;
  for (size_t i = 0; i < moments.size(); ++i) {
    absl::StatusOr<QueryMomentsRef> layer = state_.Charge(tenant, std::move(moments[i]));
    if (!layer.ok()) return layer.status();
    charged[i] = *std::move(layer);
  }
  return charged;
}

absl::StatusOr<SessionInfo> EngineImpl::CreateSession(const Caller& caller, SessionSpec spec,
                                                      bool* created) {
  *created = false;
  absl::Status valid = ValidateSpec(spec, state_.options);
  if (!valid.ok()) return valid;
  for (const LayerShape& layer : spec.layers) {
    absl::Status supported = state_.backend->Supports(layer, spec.dtype, spec.codec, spec.packkv);
    if (!supported.ok()) return supported;
  }
  std::shared_ptr<const ModelLayout> layout;
  if (!spec.calibration.empty()) {
    absl::StatusOr<std::shared_ptr<const ModelLayout>> found =
        state_.calibrations->Find(caller.tenant, spec.calibration, spec.profile, spec.layers);
    if (!found.ok()) return found.status();
    layout = *std::move(found);
  }
  // A name whose session has expired is free.
  ExpireSessions();

  MutexLock lock(state_.mu);
  absl::Status accepting = state_.CheckAccepting();
  if (!accepting.ok()) return accepting;
  const absl::Time now = state_.clock->Now();
  if (const SessionRef existing = state_.sessions.FindByName(caller.tenant, spec.name, now)) {
    const std::string difference = FirstDifference(existing->spec(), spec);
    if (!difference.empty()) {
      return absl::AlreadyExistsError(
          absl::StrCat(difference, " in the session named ", spec.name));
    }
    existing->Touch(now);
    return existing->Info();
  }
  const size_t sessions_max = static_cast<size_t>(state_.options.sessions_per_tenant_max);
  const size_t count = state_.sessions.CountOf(caller.tenant);
  if (count >= sessions_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("sessions_per_tenant_max: ", count, " of ", sessions_max, " sessions exist"));
  }
  absl::StatusOr<std::vector<QueryMomentsRef>> moments = TakeMoments(caller.tenant, &spec);
  if (!moments.ok()) return moments.status();
  const auto session = std::make_shared<Session>(NewSessionId(), caller.tenant, std::move(spec),
                                                 layout, *std::move(moments), now);
  state_.sessions.Insert(session);
  *created = true;
  return session->Info();
}

absl::StatusOr<SessionInfo> EngineImpl::GetSession(const Caller& caller,
                                                   const std::string& session_id,
                                                   const std::string& name) {
  MutexLock lock(state_.mu);
  if (!session_id.empty()) {
    const absl::StatusOr<SessionRef> session = state_.Find(caller.tenant, session_id);
    if (!session.ok()) return session.status();
    return (*session)->Info();
  }
  const SessionRef session = state_.sessions.FindByName(caller.tenant, name, state_.clock->Now());
  if (session == nullptr) return absl::NotFoundError(absl::StrCat("name: ", name, ", unknown"));
  return session->Info();
}

std::vector<SessionInfo> EngineImpl::ListSessions(const Caller& caller,
                                                  const std::string& after_name, size_t limit) {
  std::vector<SessionInfo> infos;
  MutexLock lock(state_.mu);
  for (const SessionRef& session :
       state_.sessions.List(caller.tenant, after_name, limit, state_.clock->Now())) {
    infos.push_back(session->Info());
  }
  return infos;
}

absl::Status EngineImpl::DeleteSession(const Caller& caller, const std::string& session_id) {
  const InFlight in_flight(&state_);
  // Outlives the lock: what is freed with it takes time.
  SessionRef session;
  UnmapRequests requests;
  {
    MutexLock lock(state_.mu);
    absl::StatusOr<SessionRef> found = state_.Find(caller.tenant, session_id);
    if (!found.ok()) return found.status();
    session = *std::move(found);
    session->set_deleted();
    state_.sessions.Erase(*session);
    requests = state_.leases.UnmapRequestsFor(session_id);
  }
  Send(requests);
  return absl::OkStatus();
}

absl::StatusOr<SessionInfo> EngineImpl::TouchSession(const Caller& caller,
                                                     const std::string& session_id) {
  MutexLock lock(state_.mu);
  const absl::StatusOr<SessionRef> session = state_.Find(caller.tenant, session_id);
  if (!session.ok()) return session.status();
  (*session)->Touch(state_.clock->Now());
  return (*session)->Info();
}

absl::Status EngineImpl::PutCalibration(const Caller& caller, const Calibration& calibration) {
  if (state_.calibrations->Has(caller.tenant, calibration.hash)) return absl::OkStatus();
  absl::StatusOr<MemoryCharge> charge = state_.ReserveHostMemory(
      caller.tenant, CalibrationStore::BytesOf(calibration), "the calibration");
  if (!charge.ok()) return charge.status();
  absl::Status stored = state_.calibrations->Put(caller.tenant, calibration);
  if (!stored.ok()) return stored;
  MutexLock lock(state_.mu);
  // Of two calls that store the same one the first is charged.
  state_.calibration_charges.emplace(std::make_pair(caller.tenant, calibration.hash),
                                     *std::move(charge));
  return absl::OkStatus();
}

void EngineImpl::Drain(absl::Time deadline) {
  {
    MutexLock lock(state_.mu);
    state_.draining = true;
    while (state_.in_flight > 0) {
      if (!state_.in_flight_changed.WaitUntil(state_.mu, deadline)) return;
    }
  }
  // The last results are on their way.
  state_.queue.WaitUntilIdle(deadline);
}

void EngineImpl::ExpireSessions() {
  const InFlight in_flight(&state_);
  std::vector<SessionRef> expired;
  MutexLock lock(state_.mu);
  expired = state_.sessions.TakeExpired(state_.clock->Now());
  for (const SessionRef& session : expired) session->set_deleted();
}

size_t EngineImpl::session_count() const {
  MutexLock lock(state_.mu);
  return state_.sessions.size();
}

EngineTotals EngineImpl::totals() {
  const InFlight in_flight(&state_);
  std::vector<SessionRef> sessions;
  {
    MutexLock lock(state_.mu);
    sessions = state_.sessions.All();
  }
  EngineTotals totals;
  for (const SessionRef& session : sessions) {
    EngineTotals::Bytes& bytes = totals.Of(session->spec().codec);
    MutexLock lock(state_.mu);
    bytes.logical += session->logical_bytes();
    bytes.stored += session->stored_bytes();
    totals.committed_tokens += session->committed_token_count();
  }
  return totals;
}

std::vector<Codec> EngineImpl::codecs() const {
  constexpr LayerShape kShape = {8, 32, 128, 0, 0};
  std::vector<Codec> codecs;
  for (const Codec codec : kCodecs) {
    if (state_.backend->Supports(kShape, DType::kBf16, codec, {}).ok()) codecs.push_back(codec);
  }
  return codecs;
}

void EngineImpl::CheckInvariants() {
  MutexLock lock(state_.mu);
  state_.sessions.CheckInvariants();
  std::map<std::string, uint64_t> stored;
  uint64_t total = 0;
  // What sessions list, and then, once each, what only directories and mapped writers hold.
  std::set<const StoredExtent*> listed;
  const auto add_held = [&](const std::string& tenant, const std::vector<ExtentRef>& extents) {
    for (const ExtentRef& extent : extents) {
      if (!listed.insert(extent.get()).second) continue;
      stored[tenant] += extent->charge.bytes();
      total += extent->charge.bytes();
    }
  };
  for (const SessionRef& session : state_.sessions.All()) {
    for (const Layer& layer : session->layers()) {
      for (const ExtentRef& extent : layer.View(layer.first_held(), layer.token_count()).extents) {
        listed.insert(extent.get());
      }
    }
  }
  for (const SessionRef& session : state_.sessions.All()) {
    if (session->writer().has_value()) {
      for (const auto& room : session->writer()->room) add_held(session->tenant(), room);
    }
  }
  for (const auto& [id, lease] : state_.leases.all()) {
    for (const auto& [session_id, shown] : lease->shown) {
      for (const auto& [version, directory] : shown.versions) {
        for (const Directory::Layer& layer : directory->layers) {
          add_held(lease->tenant, layer.extents);
          add_held(lease->tenant, layer.room);
        }
      }
    }
  }
  for (const SessionRef& session : state_.sessions.All()) {
    KVDEPOT_CHECK(!session->deleted());
    KVDEPOT_CHECK(session->generation() >= 1);
    for (const Layer& layer : session->layers()) layer.CheckInvariants();
    stored[session->tenant()] += session->stored_bytes();
    total += session->stored_bytes();
  }
  for (const auto& [key, charge] : state_.calibration_charges) {
    stored[key.first] += charge.bytes();
    total += charge.bytes();
  }
  // Calls in flight hold memory besides: what they prepare, and what they read after its session
  // dropped it.
  bool exact = state_.in_flight == 0;
  // So do directories of deleted sessions: their own calibrations.
  for (const auto& [id, lease] : state_.leases.all()) {
    for (const auto& [session_id, shown] : lease->shown) {
      if (shown.session.expired()) exact = false;
    }
  }
  for (const auto& [tenant, bytes] : stored) {
    const uint64_t used = state_.budget.tenant_used_bytes(tenant);
    KVDEPOT_CHECK(exact ? used == bytes : used >= bytes);
  }
  KVDEPOT_CHECK(exact ? used_bytes() == total : used_bytes() >= total);
}

}  // namespace

std::unique_ptr<Engine> Engine::Make(const EngineOptions& options, std::unique_ptr<Backend> backend,
                                     CalibrationStore* calibrations, Clock* clock,
                                     EngineObserver* observer) {
  return std::make_unique<EngineImpl>(options, std::move(backend), calibrations, clock, observer);
}

}  // namespace kvdepot
