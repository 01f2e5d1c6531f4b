#include "server/background_seal.h"

#include <cstddef>
#include <memory>
#include <utility>

#include "server/sealer.h"
#include "server/work_queue.h"

namespace kvdepot {
namespace {

// Needs no right of its own: pieces of work never run side by side, and between them a mutation may
// begin, which this sees before its next piece.
class BackgroundSeal final : public Work {
 public:
  BackgroundSeal(EngineState* state, std::shared_ptr<Session> session)
      : in_flight_(state),
        state_(state),
        session_(std::move(session)),
        mutation_(session_->mutation()),
        sealer_(state, AllLayers(session_.get())) {}

  bool RunPiece() override { return MayGoOn() && sealer_.RunTurn(); }
  void Refuse(const absl::Status&) override {}

 private:
  bool MayGoOn() const {
    MutexLock lock(state_->mu);
    return !session_->deleted() && !session_->in_mutation() && session_->mutation() == mutation_ &&
           state_->CheckAccepting().ok();
  }

  const InFlight in_flight_;
  EngineState* const state_;
  const std::shared_ptr<Session> session_;
  // The last one when this was asked for.
  const uint64_t mutation_;
  Sealer sealer_;
};

}  // namespace

uint64_t DueBytes(const Session& session) {
  uint64_t bytes = 0;
  for (const Layer& layer : session.layers()) {
    bytes += layer.due_tokens() * ExactExtentBytes(layer.shape(), session.spec().dtype, 1);
  }
  return bytes;
}

void StartBackgroundSeal(EngineState* state, const MutationRight& right) {
  {
    MutexLock lock(state->mu);
    if (DueBytes(*right.session()) == 0) return;
  }
  Caller caller;
  caller.tenant = right.session()->tenant();
  std::unique_ptr<Work> work = std::make_unique<BackgroundSeal>(state, right.shared_session());
  // A full queue keeps it here, and it goes.
  (void)state->queue.Push(caller, work);
}

}  // namespace kvdepot
