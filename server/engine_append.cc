#include "server/engine_append.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "gpu/check.h"
#include "server/chunk_writer.h"
#include "server/engine_work.h"
#include "server/layer_addition.h"
#include "server/mutation_right.h"
#include "server/sealer.h"

namespace kvdepot {
namespace {

using LayerStates = std::vector<std::pair<int, LayerState>>;

// What the chunks of one call have in common. Chunks in the queue share it with the caller's
// Addition, so that the caller may go away first.
class OpenAddition {
 public:
  explicit OpenAddition(EngineState* state) : in_flight_(absl::in_place, state), state_(state) {}
  ~OpenAddition() { Close(); }

  // Errors as MutationRight::Take; also UNAVAILABLE while draining.
  absl::Status Open(const Caller& caller, const std::string& session_id, uint64_t generation) {
    MutexLock lock(state_->mu);
    absl::Status status = state_->CheckAccepting();
    if (!status.ok()) return status;
    absl::StatusOr<MutationRight> right =
        MutationRight::Take(state_, caller.tenant, session_id, generation);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return absl::OkStatus();
  }

  Session* session() const { return right_.session(); }

  // Every layer that the call named, with what it got so far. Touched by one chunk at a time.
  std::map<int, LayerAddition>& layers() { return layers_; }

  // Decides what the addition seals; encoding it may be left to the next one.
  void End() {
    if (ended_) return;
    ended_ = true;
    const absl::Time now = state_->clock->Now();
    DroppedExtents dropped;
    MutexLock lock(state_->mu);
    for (const auto& [index, addition] : layers_) {
      Layer& layer = session()->layers()[static_cast<size_t>(index)];
      const DroppedExtents gone =
          EndAddition(state_->seal_rule, addition, session()->committed_token_count(), now, &layer);
      dropped.insert(dropped.end(), gone.begin(), gone.end());
    }
  }

  // Ends and gives the session back.
  void Close() {
    if (session() == nullptr) return;
    End();
    right_ = MutationRight();
    in_flight_.reset();
  }

 private:
  absl::optional<InFlight> in_flight_;
  EngineState* const state_;
  MutationRight right_;
  std::map<int, LayerAddition> layers_;
  bool ended_ = false;
};

absl::Status CheckNotDeleted(const Session& session) {
  if (!session.deleted()) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("session_id: ", session.id(), ", deleted meanwhile"));
}

class ChunkWork final : public EngineWork<LayerState> {
 public:
  ChunkWork(EngineState* state, const Caller& caller, std::shared_ptr<OpenAddition> addition,
            TokenChunk chunk, Engine::Done<LayerState> done)
      : EngineWork(state, Operation::kAppend, caller, std::move(done)),
        addition_(std::move(addition)),
        chunk_(std::move(chunk)),
        sealer_(MakeSealer()) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    Session& session = *addition_->session();
    absl::Status status = CheckNotDeleted(session);
    if (status.ok()) {
      status = CheckChunk(session, chunk_, state()->options.tokens_per_session_max);
    }
    session.Touch(state()->clock->Now());
    return status;
  }

 private:
  absl::optional<absl::StatusOr<LayerState>> Step() override {
    const size_t index = static_cast<size_t>(chunk_.layer);
    if (!stored_) {
      // What waits for memory comes first: sealing it frees some.
      if (sealer_.RunTurn()) return absl::nullopt;
      absl::Status status = Store(index);
      if (!status.ok()) return status;
      stored_ = true;
      sealer_ = MakeSealer();
    }
    if (sealer_.RunTurn()) return absl::nullopt;
    MutexLock lock(state()->mu);
    return addition_->session()->layers()[index].state();
  }

  Sealer MakeSealer() const {
    return Sealer(state(), {{addition_->session(), static_cast<size_t>(chunk_.layer)}});
  }

  absl::Status Store(size_t index) {
    Session* const session = addition_->session();
    absl::StatusOr<ChunkWriter> writer = ChunkWriter::Prepare(state(), session, chunk_);
    if (!writer.ok()) return writer.status();
    const uint64_t stored = writer->Store(state());
    MutexLock lock(state()->mu);
    Layer& layer = session->layers()[index];
    LayerAddition& addition = addition_->layers()[chunk_.layer];
    if (addition.token_count == 0) addition.position = layer.token_count() - stored;
    addition.token_count += stored;
    DecideDuringAddition(state()->seal_rule, addition, state()->clock->Now(), &layer);
    return absl::OkStatus();
  }

  void Release() override { addition_.reset(); }

  std::shared_ptr<OpenAddition> addition_;
  const TokenChunk chunk_;
  bool stored_ = false;
  Sealer sealer_;
};

class FinishWork final : public EngineWork<LayerStates> {
 public:
  FinishWork(EngineState* state, const Caller& caller, std::shared_ptr<OpenAddition> addition,
             Engine::Done<LayerStates> done)
      : EngineWork(state, Operation::kAppend, caller, std::move(done)),
        addition_(std::move(addition)) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    return CheckNotDeleted(*addition_->session());
  }

 private:
  absl::optional<absl::StatusOr<LayerStates>> Step() override {
    Session* const session = addition_->session();
    if (!sealer_.has_value()) {
      addition_->End();
      std::vector<SealTarget> targets;
      for (const auto& [index, addition] : addition_->layers()) {
        targets.push_back({session, static_cast<size_t>(index)});
      }
      sealer_.emplace(state(), std::move(targets));
    }
    if (sealer_->RunTurn()) return absl::nullopt;
    LayerStates states;
    MutexLock lock(state()->mu);
    for (const auto& [index, addition] : addition_->layers()) {
      states.emplace_back(index, session->layers()[static_cast<size_t>(index)].state());
    }
    return states;
  }

  // Whatever the result: the addition is over, though its caller may still hold it.
  void Release() override {
    addition_->Close();
    addition_.reset();
  }

  std::shared_ptr<OpenAddition> addition_;
  absl::optional<Sealer> sealer_;
};

class AppendCall final : public Engine::Addition {
 public:
  AppendCall(EngineState* state, const Caller& caller, std::shared_ptr<OpenAddition> addition)
      : state_(state), caller_(caller), addition_(std::move(addition)) {}

  void Append(TokenChunk chunk, Engine::Done<LayerState> done) override {
    KVDEPOT_CHECK(addition_ != nullptr);
    Submit<LayerState>(state_, std::make_unique<ChunkWork>(state_, caller_, addition_,
                                                           std::move(chunk), std::move(done)));
  }

  void Finish(Engine::Done<LayerStates> done) override {
    KVDEPOT_CHECK(addition_ != nullptr);
    Submit<LayerStates>(state_, std::make_unique<FinishWork>(state_, caller_, std::move(addition_),
                                                             std::move(done)));
  }

 private:
  EngineState* const state_;
  const Caller caller_;
  // Null after Finish.
  std::shared_ptr<OpenAddition> addition_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine::Addition>> BeginAddition(EngineState* state,
                                                                const Caller& caller,
                                                                const std::string& session_id,
                                                                uint64_t generation) {
  auto addition = std::make_shared<OpenAddition>(state);
  absl::Status status = addition->Open(caller, session_id, generation);
  if (!status.ok()) return status;
  return std::make_unique<AppendCall>(state, caller, std::move(addition));
}

}  // namespace kvdepot
