#include "server/mutation_right.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "server/background_seal.h"

namespace kvdepot {

namespace {

absl::Status CheckWriter(const Session& session, const std::string& lease_id) {
  const absl::optional<MappedWriter>& writer = session.writer();
  if (writer.has_value() && writer->lease_id != lease_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "lease_id: ", lease_id.empty() ? "none" : lease_id, ", is not the writer of session ",
        session.id(), ", which another lease maps for writing"));
  }
  return absl::OkStatus();
}

absl::Status CheckIdle(const Session& session) {
  if (session.in_mutation()) {
    return absl::UnavailableError(
        absl::StrCat("session_id: ", session.id(), ", another mutation of it is in flight"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MutationRight> MutationRight::Take(EngineState* state, const std::string& tenant,
                                                  const std::string& session_id,
                                                  uint64_t generation,
                                                  const std::string& lease_id) {
  absl::StatusOr<std::shared_ptr<Session>> session = state->Find(tenant, session_id);
  if (!session.ok()) return session.status();
  absl::Status status = CheckWriter(**session, lease_id);
  if (status.ok()) status = CheckIdle(**session);
  if (!status.ok()) return status;
  if ((*session)->left_by_writer()) {
    return absl::UnavailableError(absl::StrCat(
        "session_id: ", session_id, ", is being taken over from a writer whose lease ended"));
  }
  if ((*session)->generation() != generation) {
    return absl::AbortedError(
        absl::StrCat("generation: ", generation, ", the session is at ", (*session)->generation()));
  }
  return MutationRight(state, *std::move(session));
}

absl::StatusOr<MutationRight> MutationRight::TakeAsWriter(EngineState* state,
                                                          const std::string& tenant,
                                                          const std::string& session_id,
                                                          uint64_t generation,
                                                          const std::string& lease_id) {
  const absl::StatusOr<std::shared_ptr<Session>> session = state->Find(tenant, session_id);
  if (!session.ok()) return session.status();
  if (!(*session)->writer().has_value()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "lease_id: ", lease_id, ", is not the writer of session ", session_id, ", which has none"));
  }
  return Take(state, tenant, session_id, generation, lease_id);
}

absl::StatusOr<MutationRight> MutationRight::TakeToMap(EngineState* state,
                                                       const std::shared_ptr<Session>& session,
                                                       const std::string& lease_id) {
  absl::Status status = CheckWriter(*session, lease_id);
  if (status.ok()) status = CheckIdle(*session);
  if (!status.ok()) return status;
  return MutationRight(state, session);
}

absl::StatusOr<MutationRight> MutationRight::TakeToTakeOver(
    EngineState* state, const std::shared_ptr<Session>& session) {
  absl::Status status = CheckIdle(*session);
  if (!status.ok()) return status;
  if (!session->left_by_writer()) {
    return absl::UnavailableError(
        absl::StrCat("session_id: ", session->id(), ", has been taken over"));
  }
  return MutationRight(state, session);
}

MutationRight::MutationRight(EngineState* state, std::shared_ptr<Session> session)
    : state_(state), session_(std::move(session)) {
  session_->BeginMutation();
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
  bool seal_waits = false;
  {
    MutexLock lock(state_->mu);
    session_->EndMutation();
    session_->Touch(state_->clock->Now());
    seal_waits = session_->background_seal() == Session::BackgroundSeal::kWaits;
  }
  if (seal_waits) StartBackgroundSeal(state_, session_);
}

}  // namespace kvdepot
