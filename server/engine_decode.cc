#include "server/engine_decode.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/attend_batch.h"
#include "server/chunk_writer.h"
#include "server/engine_work.h"
#include "server/layer_addition.h"
#include "server/mutation_right.h"
#include "server/request_check.h"
#include "server/sealer.h"

namespace kvdepot {
namespace {

using Results = std::vector<AttendResult>;

// Pieces: what earlier additions left unsealed, in turns; then store and attend; then what
// these additions seal.
class DecodeWork final : public EngineWork<Results> {
 public:
  DecodeWork(EngineState* state, const Caller& caller, int layer, float scale,
             std::vector<DecodeStep> steps, Engine::Done<Results> done)
      : EngineWork(state, Operation::kDecode, caller, std::move(done)),
        layer_(layer),
        scale_(scale),
        steps_(std::move(steps)),
        batch_(absl::in_place, state->options.work_piece_row_tokens) {}

  absl::Status Admit() override {
    absl::Status status = CheckBatch(scale_, steps_.size(), state()->options);
    if (!status.ok()) return status;
    MutexLock lock(state()->mu);
    status = state()->CheckAccepting();
    for (size_t i = 0; i < steps_.size() && status.ok(); ++i) status = InItem(i, Check(steps_[i]));
    return status;
  }

 private:
  // The rights are taken one by one and given back together, by Release.
  absl::Status Check(const DecodeStep& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state()->mu) {
    for (const MutationRight& right : rights_) {
      if (right.session()->id() == step.session_id) {
        return absl::InvalidArgumentError(
            absl::StrCat("session_id: ", step.session_id, ", must not be named twice"));
      }
    }
    absl::StatusOr<MutationRight> right =
        MutationRight::Take(state(), caller().tenant, step.session_id, step.generation);
    if (!right.ok()) return right.status();
    rights_.push_back(*std::move(right));
    const Session& session = *rights_.back().session();
    if (step.chunk.layer != layer_) {
      return absl::InvalidArgumentError(absl::StrCat("chunk.layer: ", step.chunk.layer,
                                                     ", must be the message's, which is ", layer_));
    }
    absl::Status status = CheckChunk(session, step.chunk, state()->options.tokens_per_session_max);
    if (!status.ok()) return status;
    if (step.query_tokens != step.chunk.token_count) {
      return absl::InvalidArgumentError(absl::StrCat("queries.token_count: ", step.query_tokens,
                                                     ", must be chunk.token_count, which is ",
                                                     step.chunk.token_count));
    }
    const Layer& layer = session.layers()[layer_index()];
    status = CheckQueries(session, layer.shape(), step, state()->options.query_tokens_max);
    if (!status.ok()) return status;
    return CheckVisible("chunk.position", layer, step.chunk.position);
  }

  absl::optional<absl::StatusOr<Results>> Step() override {
    if (!sealer_.has_value()) sealer_.emplace(state(), SealTargets());
    if (phase_ == Phase::kOwed) {
      if (sealer_->RunTurn()) return absl::nullopt;
      absl::Status status = Store();
      if (!status.ok()) return status;
      batch_->Prepare();
      phase_ = Phase::kAttend;
      if (!batch_->is_one_piece()) return absl::nullopt;
    }
    if (phase_ == Phase::kAttend) {
      const absl::StatusOr<bool> more = batch_->RunPiece(state()->backend.get());
      if (more.ok() && *more) return absl::nullopt;
      // The tokens are stored, whatever became of their attention: sending them again stores
      // nothing twice, so that keeping them costs the caller less than taking them back.
      EndAdditions();
      if (!more.ok()) {
        return absl::Status(more.status().code(),
                            absl::StrCat(more.status().message(), "; the tokens are stored"));
      }
      phase_ = Phase::kSeal;
      sealer_.emplace(state(), SealTargets());
    }
    if (sealer_->RunTurn()) return absl::nullopt;
    return std::move(results_);
  }

  std::vector<SealTarget> SealTargets() const {
    std::vector<SealTarget> targets;
    for (const MutationRight& right : rights_) targets.push_back({right.session(), layer_index()});
    return targets;
  }

  // All tokens or none.
  absl::Status Store() {
    std::vector<ChunkWriter> writers;
    for (size_t i = 0; i < steps_.size(); ++i) {
      Session* const session = rights_[i].session();
      const absl::Status finite =
          CheckFinite(state()->backend.get(), "queries.q", steps_[i].q, session->spec().dtype);
      if (!finite.ok()) return InItem(i, finite);
      absl::StatusOr<ChunkWriter> writer = ChunkWriter::Prepare(state(), session, steps_[i].chunk);
      if (!writer.ok()) return InItem(i, writer.status());
      writers.push_back(*std::move(writer));
    }
    for (size_t i = 0; i < steps_.size(); ++i) {
      const DecodeStep& step = steps_[i];
      const uint64_t stored = writers[i].Store(state());
      MutexLock lock(state()->mu);
      const Session& session = *rights_[i].session();
      additions_.push_back({session.layers()[layer_index()].token_count() - stored, stored});
      batch_->Add(ViewForQueries(session, layer_index(), scale_, step,
                                 step.chunk.position + step.chunk.token_count));
    }
    return absl::OkStatus();
  }

  // After the attention, so that each addition is still exact to its own queries.
  void EndAdditions() {
    results_ = batch_->TakeResults();
    batch_.reset();
    const absl::Time now = state()->clock->Now();
    std::vector<DroppedExtents> dropped;
    MutexLock lock(state()->mu);
    for (size_t i = 0; i < steps_.size(); ++i) {
      Session& session = *rights_[i].session();
      Layer& layer = session.layers()[layer_index()];
      dropped.push_back(EndAddition(state()->seal_rule, additions_[i],
                                    session.committed_token_count(), now, &layer));
      results_[i].token_count = layer.token_count();
    }
  }

  void Release() override {
    batch_.reset();
    rights_.clear();
  }

  size_t layer_index() const { return static_cast<size_t>(layer_); }

  enum class Phase { kOwed, kAttend, kSeal };

  const int layer_;
  const float scale_;
  const std::vector<DecodeStep> steps_;
  // One entry a step, from here on.
  std::vector<MutationRight> rights_;
  std::vector<LayerAddition> additions_;
  absl::optional<AttendBatch> batch_;
  Results results_;
  Phase phase_ = Phase::kOwed;
  absl::optional<Sealer> sealer_;
};

}  // namespace

void StartDecode(EngineState* state, const Caller& caller, int layer, float scale,
                 std::vector<DecodeStep> steps, Engine::Done<std::vector<AttendResult>> done) {
  Submit<Results>(state, std::make_unique<DecodeWork>(state, caller, layer, scale, std::move(steps),
                                                      std::move(done)));
}

}  // namespace kvdepot
