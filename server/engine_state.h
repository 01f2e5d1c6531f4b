// What all calls of one engine share. Data only: the calls are in engine_*.cc.
#ifndef KVDEPOT_SERVER_ENGINE_STATE_H_
#define KVDEPOT_SERVER_ENGINE_STATE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "gpu/backend.h"
#include "gpu/seal_rule.h"
#include "server/calibration_store.h"
#include "server/charged.h"
#include "server/clock.h"
#include "server/engine_observer.h"
#include "server/engine_options.h"
#include "server/lease_table.h"
#include "server/memory_budget.h"
#include "server/mutex.h"
#include "server/session_table.h"
#include "server/work_queue.h"

namespace kvdepot {

// Members stand in the order in which they need each other: the queue, which runs calls, ends
// first; memory goes before the backend that it came from, and that before the ledger.
struct EngineState {
  EngineState(const EngineOptions& engine_options, std::unique_ptr<Backend> engine_backend,
              CalibrationStore* engine_calibrations, Clock* engine_clock,
              EngineObserver* engine_observer);
  ~EngineState();

  // UNAVAILABLE while draining, INTERNAL after the device has failed.
  absl::Status CheckAccepting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // NOT_FOUND: no such session of this tenant.
  absl::StatusOr<std::shared_ptr<Session>> Find(const std::string& tenant,
                                                const std::string& session_id) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Extents of these sizes, charged to `tenant`: all of them or none. RESOURCE_EXHAUSTED naming the
  // limit. Without the lock: where memory is short the tenant's leases are asked to unmap.
  absl::StatusOr<std::vector<ExtentRef>> Allocate(const std::string& tenant, ExtentUse use,
                                                  const std::vector<uint64_t>& sizes_bytes);
  // As Allocate, one extent that is its caller's alone: of a segment whose size is not known yet.
  absl::StatusOr<std::unique_ptr<StoredExtent>> AllocateOwn(const std::string& tenant,
                                                            ExtentUse use, uint64_t size_bytes);
  // As Allocate, for what can wait: nobody is asked for anything.
  absl::StatusOr<std::vector<ExtentRef>> AllocateIfFree(const std::string& tenant, ExtentUse use,
                                                        const std::vector<uint64_t>& sizes_bytes);
  // Of what `field` of a request brings. RESOURCE_EXHAUSTED naming the limit and the field.
  absl::StatusOr<MemoryCharge> ReserveHostMemory(const std::string& tenant, uint64_t bytes,
                                                 absl::string_view field);
  // `moments`, charged to `tenant`; null if there are none. Errors as ReserveHostMemory.
  absl::StatusOr<QueryMomentsRef> Charge(const std::string& tenant, std::vector<float> moments);

  // `status`; the observer is told if it is an error.
  absl::Status Report(MappingOperation operation, absl::Status status) const;

  // Frees what leases let go of, and counts it. Without the lock.
  void LetGoOf(LetGo let_go);

  // Because memory is short: asks the tenant's leases to unmap.
  void WantUnmapped(const std::string& tenant);

  const EngineOptions options;
  const SealRule seal_rule;
  CalibrationStore* const calibrations;
  Clock* const clock;
  EngineObserver* const observer;

  MemoryBudget budget;
  // Of the worker alone, but for what may be called from any thread.
  const std::unique_ptr<Backend> backend;
  // `planes` segments so far, of the worker alone.
  uint64_t planes_segments = 0;
  // Of extents that nobody but the directories that leases let go of still held.
  std::atomic<uint64_t> reclaimed_bytes{0};

  mutable Mutex mu;
  CondVar in_flight_changed;
  SessionTable sessions ABSL_GUARDED_BY(mu);
  LeaseTable leases ABSL_GUARDED_BY(mu);
  // Sessions that wait for their TakeOver (take_over.h).
  std::vector<std::weak_ptr<Session>> left_by_writer ABSL_GUARDED_BY(mu);
  // Of the calibrations that tenants stored, by tenant and hash. Never dropped, like those.
  std::map<std::pair<std::string, std::string>, MemoryCharge> calibration_charges
      ABSL_GUARDED_BY(mu);
  // Calls that hold sessions or memory of theirs.
  int in_flight ABSL_GUARDED_BY(mu) = 0;
  bool draining ABSL_GUARDED_BY(mu) = false;

  WorkQueue queue;
};

// One call in flight, from before it looks at any session until it holds nothing of one any more.
class InFlight {
 public:
  explicit InFlight(EngineState* state);
  ~InFlight();
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

 private:
  EngineState* const state_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_STATE_H_
