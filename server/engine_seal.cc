#include "server/engine_seal.h"

#include <memory>
#include <utility>

#include "server/engine_work.h"
#include "server/mutation_right.h"
#include "server/seal_rule.h"
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
        MutationRight::Take(state(), caller().tenant, session_id_, generation_);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return absl::OkStatus();
  }

 private:
  // Without memory for a segment the call fails, unlike an Append: sealing is all that it is for.
  // What it decided stays due.
  absl::optional<absl::StatusOr<SessionInfo>> Step() override {
    Session* const session = right_.session();
    if (!decided_) {
      decided_ = true;
      MutexLock lock(state()->mu);
      for (Layer& layer : session->layers()) {
        layer.Decide(DecideToWindow(state()->seal_rule, layer.undecided_tokens()));
      }
    }
    for (; next_layer_ < session->spec().layers.size(); ++next_layer_) {
      const absl::StatusOr<bool> sealed = SealNext(state(), session, next_layer_);
      if (!sealed.ok()) return sealed.status();
      if (*sealed) return absl::nullopt;
    }
    MutexLock lock(state()->mu);
    return session->Info();
  }

  void Release() override { right_ = MutationRight(); }

  const std::string session_id_;
  const uint64_t generation_;
  MutationRight right_;
  bool decided_ = false;
  size_t next_layer_ = 0;
};

}  // namespace

void StartSeal(EngineState* state, const Caller& caller, const std::string& session_id,
               uint64_t generation, Engine::Done<SessionInfo> done) {
  Submit<SessionInfo>(
      state, std::make_unique<SealWork>(state, caller, session_id, generation, std::move(done)));
}

}  // namespace kvdepot
