#include "server/engine_state.h"

#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"

namespace kvdepot {

EngineState::EngineState(const EngineOptions& engine_options,
                         std::unique_ptr<Backend> engine_backend,
                         CalibrationStore* engine_calibrations, Clock* engine_clock,
                         EngineObserver* engine_observer)
    : options(engine_options),
      seal_rule{options.window_tokens, options.decode_seal_tokens, options.prompt_tokens_min,
                options.segment_tokens_max},
      calibrations(engine_calibrations),
      clock(engine_clock),
      observer(engine_observer),
      budget(options.budget_bytes, options.tenant_quota_bytes),
      backend(std::move(engine_backend)),
      queue(options.queued_requests_per_tenant_max, clock) {
  KVDEPOT_CHECK(options.Problems().empty());
  backend->SetBudget(options.budget_bytes);
}

EngineState::~EngineState() = default;

absl::Status EngineState::CheckAccepting() const {
  if (draining) return absl::UnavailableError("draining: the daemon is about to end");
  return backend->health();
}

absl::StatusOr<std::shared_ptr<Session>> EngineState::Find(const std::string& tenant,
                                                           const std::string& session_id) const {
  std::shared_ptr<Session> session = sessions.FindById(tenant, session_id, clock->Now());
  if (session == nullptr) {
    return absl::NotFoundError(absl::StrCat("session_id: ", session_id, ", unknown"));
  }
  return session;
}

absl::StatusOr<std::vector<ExtentRef>> EngineState::Allocate(
    const std::string& tenant, ExtentUse use, const std::vector<uint64_t>& sizes_bytes) {
  absl::StatusOr<std::vector<ExtentRef>> extents = AllocateIfFree(tenant, use, sizes_bytes);
  if (absl::IsResourceExhausted(extents.status())) WantUnmapped(tenant);
  return extents;
}

absl::StatusOr<std::unique_ptr<StoredExtent>> EngineState::AllocateOwn(const std::string& tenant,
                                                                       ExtentUse use,
                                                                       uint64_t size_bytes) {
  absl::StatusOr<MemoryCharge> charge = budget.Reserve(tenant, size_bytes);
  absl::Status status = charge.status();
  if (status.ok()) {
    absl::StatusOr<std::unique_ptr<Extent>> memory = backend->Allocate(tenant, use, size_bytes);
    if (memory.ok()) {
      return std::make_unique<StoredExtent>(StoredExtent{*std::move(charge), *std::move(memory)});
    }
    status = memory.status();
  }
  if (absl::IsResourceExhausted(status)) WantUnmapped(tenant);
  return status;
}

void EngineState::WantUnmapped(const std::string& tenant) {
  UnmapRequests requests;
  {
    MutexLock lock(mu);
    requests = leases.WantUnmapped(tenant, clock->Now() + options.unmap_timeout);
  }
  Send(requests);
}

absl::StatusOr<std::vector<ExtentRef>> EngineState::AllocateIfFree(
    const std::string& tenant, ExtentUse use, const std::vector<uint64_t>& sizes_bytes) {
  absl::StatusOr<MemoryCharge> charge =
      budget.Reserve(tenant, std::accumulate(sizes_bytes.begin(), sizes_bytes.end(), uint64_t{0}));
  if (!charge.ok()) return charge.status();
  std::vector<ExtentRef> extents;
  for (const uint64_t size_bytes : sizes_bytes) {
    absl::StatusOr<std::unique_ptr<Extent>> memory = backend->Allocate(tenant, use, size_bytes);
    if (!memory.ok()) return memory.status();
    extents.push_back(std::make_shared<StoredExtent>(
        StoredExtent{charge->Split(size_bytes), *std::move(memory)}));
  }
  return extents;
}

absl::Status EngineState::Report(MappingOperation operation, absl::Status status) const {
  if (!status.ok()) observer->OnMappingError(operation, status.code());
  return status;
}

void EngineState::LetGoOf(LetGo let_go) {
  uint64_t bytes = 0;
  const auto count = [&bytes](const std::vector<ExtentRef>& extents) {
    for (const ExtentRef& extent : extents) {
      if (extent.use_count() == 1) bytes += extent->memory->size_bytes();
    }
  };
  for (DirectoryRef& directory : let_go.directories) {
    if (directory.use_count() == 1) {
      for (const Directory::Layer& layer : directory->layers) {
        count(layer.extents);
        count(layer.room);
      }
    }
    directory = nullptr;
  }
  reclaimed_bytes += bytes;
}

absl::StatusOr<MemoryCharge> EngineState::ReserveHostMemory(const std::string& tenant,
                                                            uint64_t bytes,
                                                            absl::string_view field) {
  absl::StatusOr<MemoryCharge> charge = budget.Reserve(tenant, bytes);
  if (charge.ok()) return charge;
  return absl::Status(charge.status().code(),
                      absl::StrCat(charge.status().message(), " for ", field));
}

absl::StatusOr<QueryMomentsRef> EngineState::Charge(const std::string& tenant,
                                                    std::vector<float> moments) {
  if (moments.empty()) return QueryMomentsRef();
  absl::StatusOr<MemoryCharge> charge =
      ReserveHostMemory(tenant, moments.size() * sizeof(float), "query_second_moments");
  if (!charge.ok()) return charge.status();
  return std::make_shared<Charged<std::vector<float>>>(
      Charged<std::vector<float>>{*std::move(charge), std::move(moments)});
}

InFlight::InFlight(EngineState* state) : state_(state) {
  MutexLock lock(state_->mu);
  ++state_->in_flight;
}

InFlight::~InFlight() {
  MutexLock lock(state_->mu);
  --state_->in_flight;
  state_->in_flight_changed.NotifyAll();
}

}  // namespace kvdepot
