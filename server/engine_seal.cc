#include "server/engine_seal.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/types/optional.h"
#include "gpu/seal_rule.h"
#include "server/engine_work.h"
#include "server/mutation_right.h"
#include "server/sealer.h"

namespace kvdepot {
namespace {

class SealWork final : public EngineWork<SessionInfo> {
 public:
  SealWork(EngineState* state, const Caller& caller, std::string session_id, uint64_t generation,
           Engine::Done<SessionInfo> done)
      : EngineWork(state, Operation::kSeal, caller, std::move(done)),
        session_id_(std::move(session_id)),
        generation_(generation) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    absl::Status accepting = state()->CheckAccepting();
    if (!accepting.ok()) return accepting;
    absl::StatusOr<MutationRight> right =
        MutationRight::Take(state(), caller().tenant, session_id_, generation_, caller().lease_id);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return absl::OkStatus();
  }

 private:
  // Without memory for a segment the call fails, unlike an Append: sealing is all that it is for.
  // What it decided stays due.
  absl::optional<absl::StatusOr<SessionInfo>> Step() override {
    Session* const session = right_.session();
    if (!sealer_.has_value()) {
      const absl::Time now = state()->clock->Now();
      MutexLock lock(state()->mu);
      for (Layer& layer : session->layers()) {
        layer.Decide(DecideToWindow(state()->seal_rule, layer.undecided_tokens()), now);
      }
      sealer_.emplace(state(), AllLayers(session));
    }
    if (sealer_->RunTurn()) return absl::nullopt;
    if (!sealer_->put_off().ok()) return sealer_->put_off();
    MutexLock lock(state()->mu);
    return session->Info();
  }

  void Release() override { right_ = MutationRight(); }

  const std::string session_id_;
  const uint64_t generation_;
  MutationRight right_;
  absl::optional<Sealer> sealer_;
};

}  // namespace

void StartSeal(EngineState* state, const Caller& caller, const std::string& session_id,
               uint64_t generation, Engine::Done<SessionInfo> done) {
  Submit<SessionInfo>(
      state, std::make_unique<SealWork>(state, caller, session_id, generation, std::move(done)));
}

}  // namespace kvdepot
