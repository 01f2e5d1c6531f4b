#include "server/engine_attend.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/attend_batch.h"
#include "server/engine_work.h"
#include "server/request_check.h"

namespace kvdepot {
namespace {

using Results = std::vector<AttendResult>;

class AttendWork final : public EngineWork<Results> {
 public:
  AttendWork(EngineState* state, const Caller& caller, int layer, float scale,
             std::vector<AttendQuery> queries, Engine::Done<Results> done)
      : EngineWork(state, Operation::kAttend, caller, std::move(done)),
        layer_(layer),
        scale_(scale),
        queries_(std::move(queries)),
        batch_(absl::in_place, state->options.work_piece_row_tokens) {}

  // The views are taken here: a reader sees the session as it was when it asked.
  absl::Status Admit() override {
    absl::Status status = CheckBatch(scale_, queries_.size(), state()->options);
    if (!status.ok()) return status;
    MutexLock lock(state()->mu);
    status = state()->CheckAccepting();
    for (size_t i = 0; i < queries_.size() && status.ok(); ++i) status = View(i);
    return status;
  }

  // Once admitted.
  bool IsBrief() const override {
    const EngineOptions& options = state()->options;
    return batch_->row_tokens() <=
           std::min(options.brief_row_tokens_max, options.work_piece_row_tokens);
  }

 private:
  absl::Status View(size_t index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(state()->mu) {
    const AttendQuery& query = queries_[index];
    absl::StatusOr<std::shared_ptr<Session>> found =
        state()->Find(caller().tenant, query.session_id);
    if (!found.ok()) return InItem(index, found.status());
    // A field of the message, not of the item.
    if (absl::Status layer = CheckLayer("layer", **found, layer_); !layer.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(layer.message(), " in the session of items[", index, "]"));
    }
    return InItem(index, View(query, **found));
  }

  absl::Status View(const AttendQuery& query, Session& session)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state()->mu) {
    const Layer& layer = session.layers()[static_cast<size_t>(layer_)];
    absl::Status status =
        CheckQueries(session, layer.shape(), query, state()->options.query_tokens_max);
    if (!status.ok()) return status;
    const uint64_t token_count =
        query.token_count == 0 ? session.committed_token_count() : query.token_count;
    if (token_count > layer.token_count()) {
      return absl::OutOfRangeError(
          absl::StrCat("token_count: ", token_count, ", the layer has ", layer.token_count()));
    }
    if (query.query_tokens > token_count) {
      return absl::InvalidArgumentError(absl::StrCat("queries.token_count: ", query.query_tokens,
                                                     ", must be at most token_count, which is ",
                                                     token_count));
    }
    status = CheckVisible("token_count", layer, token_count - query.query_tokens);
    if (!status.ok()) return status;
    session.Touch(state()->clock->Now());
    batch_->Add(ViewForQueries(session, static_cast<size_t>(layer_), scale_, query, token_count));
    dtypes_.push_back(session.spec().dtype);
    return absl::OkStatus();
  }

  // Checking many queries and sending many outputs take as long as a piece of the attention: each
  // has a turn of its own.
  absl::optional<absl::StatusOr<Results>> Step() override {
    if (phase_ == Phase::kCheck) {
      for (size_t i = 0; i < queries_.size(); ++i) {
        absl::Status finite =
            InItem(i, CheckFinite(state()->backend.get(), "queries.q", queries_[i].q, dtypes_[i]));
        if (!finite.ok()) return finite;
      }
      batch_->Prepare();
      phase_ = Phase::kAttend;
      if (!IsBrief()) return absl::nullopt;
    } else {
      // Nothing depends on a reader: it may end between its pieces.
      absl::Status wanted = CheckWanted(caller(), state()->clock->Now());
      if (!wanted.ok()) return wanted;
    }
    if (phase_ == Phase::kAttend) {
      const absl::StatusOr<bool> more = batch_->RunPiece(state()->backend.get());
      if (!more.ok()) return more.status();
      if (*more) return absl::nullopt;
      phase_ = Phase::kDeliver;
      if (!IsBrief()) return absl::nullopt;
    }
    return batch_->TakeResults();
  }

  void Release() override { batch_.reset(); }

  enum class Phase { kCheck, kAttend, kDeliver };

  const int layer_;
  const float scale_;
  const std::vector<AttendQuery> queries_;
  std::vector<DType> dtypes_;
  absl::optional<AttendBatch> batch_;
  Phase phase_ = Phase::kCheck;
};

}  // namespace

void StartAttend(EngineState* state, const Caller& caller, int layer, float scale,
                 std::vector<AttendQuery> queries, Engine::Done<std::vector<AttendResult>> done) {
  Submit<Results>(state, std::make_unique<AttendWork>(state, caller, layer, scale,
                                                      std::move(queries), std::move(done)));
}

}  // namespace kvdepot
