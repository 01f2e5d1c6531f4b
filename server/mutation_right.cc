#include "server/mutation_right.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {

absl::StatusOr<MutationRight> MutationRight::Take(EngineState* state, const std::string& tenant,
                                                  const std::string& session_id,
                                                  uint64_t generation) {
  absl::StatusOr<std::shared_ptr<Session>> session = state->Find(tenant, session_id);
  if (!session.ok()) return session.status();
  if ((*session)->in_mutation()) {
    return absl::UnavailableError(
        absl::StrCat("session_id: ", session_id, ", another mutation of it is in flight"));
  }
  if ((*session)->generation() != generation) {
    return absl::AbortedError(
        absl::StrCat("generation: ", generation, ", the session is at ", (*session)->generation()));
  }
  return MutationRight(state, *std::move(session));
}

MutationRight::MutationRight(EngineState* state, std::shared_ptr<Session> session)
    : state_(state), session_(std::move(session)) {
  session_->set_in_mutation(true);
}

MutationRight::MutationRight(MutationRight&& other) noexcept
    : state_(other.state_), session_(std::move(other.session_)) {}

MutationRight& MutationRight::operator=(MutationRight&& other) noexcept {
  // What was held until now goes with `taken`.
  MutationRight taken(std::move(other));
  std::swap(state_, taken.state_);
  std::swap(session_, taken.session_);
  return *this;
}

MutationRight::~MutationRight() {
  if (session_ == nullptr) return;
  MutexLock lock(state_->mu);
  session_->set_in_mutation(false);
  session_->Touch(state_->clock->Now());
}

}  // namespace kvdepot
