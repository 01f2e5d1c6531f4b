#include "server/background_seal.h"

#include <cstdint>
#include <utility>

#include "absl/types/optional.h"
#include "server/sealer.h"
#include "server/work_queue.h"

namespace kvdepot {
namespace {

// Needs no right of its own: pieces of work never run side by side, and a mutation that has begun
// is seen before the next piece.
class BackgroundSealWork final : public Work {
 public:
  BackgroundSealWork(EngineState* state, std::shared_ptr<Session> session)
      : in_flight_(state), state_(state), session_(std::move(session)) {}

  bool RunPiece() override {
    uint64_t mutation = 0;
    {
      MutexLock lock(state_->mu);
      if (session_->in_mutation()) {
        session_->set_background_seal(Session::BackgroundSeal::kWaits);
        return false;
      }
      if (session_->deleted() || !state_->CheckAccepting().ok()) return false;
      mutation = session_->mutation();
    }
    // Calibrations that were made of tokens of before may be of tokens that are no longer there.
    if (!sealer_.has_value() || mutation != mutation_) {
      sealer_.emplace(state_, AllLayers(session_.get()));
      mutation_ = mutation;
    }
    if (sealer_->RunTurn()) return true;
    MutexLock lock(state_->mu);
    session_->set_background_seal(Session::BackgroundSeal::kNone);
    return false;
  }

  // The engine ends.
  void Refuse(const absl::Status&) override {}

 private:
  const InFlight in_flight_;
  EngineState* const state_;
  const std::shared_ptr<Session> session_;
  // The last one when sealer_ was made.
  uint64_t mutation_ = 0;
  absl::optional<Sealer> sealer_;
};

}  // namespace

void StartBackgroundSeal(EngineState* state, const std::shared_ptr<Session>& session) {
  {
    MutexLock lock(state->mu);
    if (session->background_seal() != Session::BackgroundSeal::kWaits) return;
    session->set_background_seal(Session::BackgroundSeal::kRuns);
  }
  Caller caller;
  caller.tenant = session->tenant();
  std::unique_ptr<Work> work = std::make_unique<BackgroundSealWork>(state, session);
  if (state->queue.Push(caller, work).ok()) return;
  MutexLock lock(state->mu);
  session->set_background_seal(Session::BackgroundSeal::kWaits);
}

}  // namespace kvdepot
