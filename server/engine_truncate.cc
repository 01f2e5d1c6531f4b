#include "server/engine_truncate.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "server/engine_work.h"
#include "server/layer.h"
#include "server/mutation_right.h"
#include "server/sealer.h"

namespace kvdepot {
namespace {

class TruncateWork final : public EngineWork<SessionInfo> {
 public:
  TruncateWork(EngineState* state, const Caller& caller, std::string session_id,
               uint64_t generation, uint64_t token_count, Engine::Done<SessionInfo> done)
      : EngineWork(state, Operation::kTruncate, caller, std::move(done)),
        session_id_(std::move(session_id)),
        generation_(generation),
        token_count_(token_count) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    absl::Status status = state()->CheckAccepting();
    if (!status.ok()) return status;
    absl::StatusOr<MutationRight> right =
        MutationRight::Take(state(), caller().tenant, session_id_, generation_, caller().lease_id);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return CheckTokenCount(*right_.session());
  }

 private:
  // After a cut the next queries must see what they would have seen.
  absl::Status CheckTokenCount(const Session& session) const {
    if (token_count_ > session.committed_token_count()) {
      return absl::OutOfRangeError(absl::StrCat("token_count: ", token_count_,
                                                ", must be at most the committed count, which is ",
                                                session.committed_token_count()));
    }
    for (size_t i = 0; i < session.layers().size() && token_count_ > 0; ++i) {
      const Layer& layer = session.layers()[i];
      const uint64_t least =
          layer.first_held() + static_cast<uint64_t>(layer.shape().sliding_window);
      if (layer.first_held() > 0 && token_count_ < least) {
        return absl::OutOfRangeError(
            absl::StrCat("token_count: ", token_count_, ", must be 0 or at least ", least,
                         ": layer ", i, " holds tokens from ", layer.first_held(),
                         " on and has a sliding_window of ", layer.shape().sliding_window));
      }
    }
    return absl::OkStatus();
  }

  // What is due is sealed first, whatever is cut off: what stays is the same, whether or not a
  // background seal had come so far.
  absl::optional<absl::StatusOr<SessionInfo>> Step() override {
    Session* const session = right_.session();
    if (!sealer_.has_value()) sealer_.emplace(state(), AllLayers(session));
    if (sealer_->RunTurn()) return absl::nullopt;
    const DType dtype = session->spec().dtype;
    std::vector<absl::optional<CutExtent>> cuts;
    {
      MutexLock lock(state()->mu);
      for (const Layer& layer : session->layers()) cuts.push_back(layer.ExtentCutBy(token_count_));
    }
    std::vector<uint64_t> sizes_bytes;
    for (const absl::optional<CutExtent>& cut : cuts) {
      if (cut.has_value()) sizes_bytes.push_back(cut->extent->memory->size_bytes());
    }
    absl::StatusOr<std::vector<ExtentRef>> fresh =
        state()->Allocate(session->tenant(), ExtentUse::kTail, sizes_bytes);
    if (!fresh.ok()) return fresh.status();

    std::vector<ExtentRef> copies(cuts.size());
    size_t next_fresh = 0;
    for (size_t i = 0; i < cuts.size(); ++i) {
      if (!cuts[i].has_value()) continue;
      copies[i] = std::move((*fresh)[next_fresh++]);
      state()->backend->CopyTokens(session->spec().layers[i], dtype, cuts[i]->extent->data(),
                                   copies[i]->data(), cuts[i]->capacity, cuts[i]->kept);
    }

    std::vector<DroppedExtents> dropped;
    MutexLock lock(state()->mu);
    for (size_t i = 0; i < copies.size(); ++i) {
      dropped.push_back(session->layers()[i].Truncate(token_count_, std::move(copies[i])));
    }
    // What the writer has put there is of no use, and what it has queued must not meet what comes
    // next.
    if (session->writer().has_value()) {
      for (std::vector<ExtentRef>& room : session->writer()->room) {
        dropped.push_back(std::exchange(room, {}));
      }
    }
    session->BumpGeneration();
    return session->Info();
  }

  void Release() override { right_ = MutationRight(); }

  const std::string session_id_;
  const uint64_t generation_;
  const uint64_t token_count_;
  MutationRight right_;
  absl::optional<Sealer> sealer_;
};

}  // namespace

void StartTruncate(EngineState* state, const Caller& caller, const std::string& session_id,
                   uint64_t generation, uint64_t token_count, Engine::Done<SessionInfo> done) {
  Submit<SessionInfo>(state, std::make_unique<TruncateWork>(state, caller, session_id, generation,
                                                            token_count, std::move(done)));
}

}  // namespace kvdepot
