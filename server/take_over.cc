#include "server/take_over.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/types/optional.h"
#include "server/engine_work.h"
#include "server/layer.h"
#include "server/mutation_right.h"

namespace kvdepot {
namespace {

struct Replacement {
  absl::optional<CutExtent> old;
  ExtentRef copy;
};

// Under the engine's lock.
std::vector<Replacement> ExtentsToReplace(const Session& session, uint64_t token_count) {
  std::vector<Replacement> replacements;
  for (const Layer& layer : session.layers()) {
    Replacement replacement;
    replacement.old = layer.ExtentCutBy(token_count);
    if (session.left_by_writer() && layer.token_count() == token_count) {
      replacement.old = layer.OpenExtent();
    }
    replacements.push_back(std::move(replacement));
  }
  return replacements;
}

class TakeOverWork final : public EngineWork<SessionInfo> {
 public:
  TakeOverWork(EngineState* state, const Caller& caller, std::shared_ptr<Session> session)
      : EngineWork(state, Operation::kMap, caller, [](const absl::StatusOr<SessionInfo>&) {}),
        session_(std::move(session)) {}

  absl::Status Admit() override {
    MutexLock lock(state()->mu);
    absl::StatusOr<MutationRight> right = MutationRight::TakeToTakeOver(state(), session_);
    if (!right.ok()) return right.status();
    right_ = *std::move(right);
    return absl::OkStatus();
  }

 private:
  absl::optional<absl::StatusOr<SessionInfo>> Step() override {
    absl::Status status = kvdepot::TakeOver(state(), session_.get());
    if (!status.ok()) return status;
    MutexLock lock(state()->mu);
    return session_->Info();
  }

  void Release() override {
    right_ = MutationRight();
    session_ = nullptr;
  }

  std::shared_ptr<Session> session_;
  MutationRight right_;
};

}  // namespace

absl::Status TakeOver(EngineState* state, Session* session) {
  const DType dtype = session->spec().dtype;
  std::vector<Replacement> replacements;
  uint64_t token_count = 0;
  {
    MutexLock lock(state->mu);
    token_count = session->committed_token_count();
    replacements = ExtentsToReplace(*session, token_count);
  }
  std::vector<uint64_t> sizes_bytes;
  for (const Replacement& replacement : replacements) {
    if (replacement.old.has_value()) {
      sizes_bytes.push_back(replacement.old->extent->memory->size_bytes());
    }
  }
  absl::StatusOr<std::vector<ExtentRef>> fresh =
      state->Allocate(session->tenant(), ExtentUse::kTail, sizes_bytes);
  if (!fresh.ok()) return fresh.status();
  size_t next_fresh = 0;
  for (size_t i = 0; i < replacements.size(); ++i) {
    Replacement& replacement = replacements[i];
    if (!replacement.old.has_value()) continue;
    replacement.copy = std::move((*fresh)[next_fresh++]);
    state->backend->CopyTokens(session->spec().layers[i], dtype, replacement.old->extent->data(),
                               replacement.copy->data(), replacement.old->capacity,
                               replacement.old->kept);
  }

  std::vector<DroppedExtents> dropped;
  MutexLock lock(state->mu);
  bool changed = session->left_by_writer();
  for (size_t i = 0; i < replacements.size(); ++i) {
    Layer& layer = session->layers()[i];
    if (layer.token_count() > token_count) {
      changed = true;
      dropped.push_back(layer.Truncate(token_count, std::move(replacements[i].copy)));
    } else if (replacements[i].copy != nullptr) {
      dropped.push_back({layer.ReplaceOpenExtent(std::move(replacements[i].copy))});
    }
  }
  session->set_left_by_writer(false);
  if (changed) session->BumpGeneration();
  return absl::OkStatus();
}

void StartTakeOvers(EngineState* state) {
  std::vector<std::shared_ptr<Session>> sessions;
  {
    MutexLock lock(state->mu);
    for (const std::weak_ptr<Session>& left : std::exchange(state->left_by_writer, {})) {
      std::shared_ptr<Session> session = left.lock();
      if (session == nullptr || !session->left_by_writer() || session->deleted()) continue;
      state->left_by_writer.push_back(session);
      sessions.push_back(std::move(session));
    }
  }
  for (const std::shared_ptr<Session>& session : sessions) {
    Caller caller;
    caller.tenant = session->tenant();
    Submit<SessionInfo>(state, std::make_unique<TakeOverWork>(state, caller, session));
  }
}

}  // namespace kvdepot
