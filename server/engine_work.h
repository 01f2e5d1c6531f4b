// A call's way through the queue: admitted on the caller's thread, done in pieces on the worker,
// its result given once.
#ifndef KVDEPOT_SERVER_ENGINE_WORK_H_
#define KVDEPOT_SERVER_ENGINE_WORK_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "server/engine.h"
#include "server/engine_observer.h"
#include "server/engine_state.h"
#include "server/session_types.h"
#include "server/work_queue.h"

namespace kvdepot {

template <typename T>
class EngineWork : public Work {
 public:
  EngineWork(EngineState* state, Operation operation, Caller caller, Engine::Done<T> done)
      : state_(state),
        operation_(operation),
        caller_(std::move(caller)),
        done_(std::move(done)),
        in_flight_(absl::in_place, state),
        called_(state->clock->Now()) {}

  // Checks the call and takes hold of what it needs, under the engine's lock and on the caller's
  // thread.
  virtual absl::Status Admit() = 0;

  bool RunPiece() final {
    const absl::Time start = state_->clock->Now();
    if (begun_ == absl::InfinitePast()) begun_ = start;
    absl::optional<absl::StatusOr<T>> result = Step();
    worked_ += state_->clock->Now() - start;
    if (!result.has_value()) return true;
    End(*std::move(result));
    return false;
  }

  void Refuse(const absl::Status& status) final { End(status); }

  const Caller& caller() const { return caller_; }

 protected:
  // One piece on the worker. Empty: pieces remain.
  virtual absl::optional<absl::StatusOr<T>> Step() = 0;
  // Gives up what the call holds of sessions and memory. Afterwards nothing but the result is left.
  virtual void Release() = 0;

  EngineState* state() const { return state_; }

 private:
  // The caller may act on the result at once: all that the call held is free before.
  void End(absl::StatusOr<T> result) {
    // What a failed device computed must not reach anybody.
    if (absl::Status health = state_->backend->health(); result.ok() && !health.ok()) {
      result = std::move(health);
    }
    Release();
    in_flight_.reset();
    const absl::Time now = state_->clock->Now();
    OperationTimes times;
    times.total = now - called_;
    times.queue = begun_ == absl::InfinitePast() ? times.total : begun_ - called_;
    times.work = worked_;
    state_->observer->OnOperation(operation_, result.status().code(), times);
    done_(std::move(result));
  }

  EngineState* const state_;
  const Operation operation_;
  const Caller caller_;
  const Engine::Done<T> done_;
  absl::optional<InFlight> in_flight_;
  const absl::Time called_;
  absl::Time begun_ = absl::InfinitePast();
  absl::Duration worked_;
};

// Admits and enqueues; an error is the call's result before this returns.
template <typename T>
void Submit(EngineState* state, std::unique_ptr<EngineWork<T>> work) {
  absl::Status status = work->Admit();
  const Caller caller = work->caller();
  std::unique_ptr<Work> queued = std::move(work);
  if (status.ok()) status = state->queue.Push(caller, queued);
  if (!status.ok()) queued->Refuse(status);
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_WORK_H_
