// The right to change a session: at most one call has it at a time.
#ifndef KVDEPOT_SERVER_MUTATION_RIGHT_H_
#define KVDEPOT_SERVER_MUTATION_RIGHT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/engine_state.h"
#include "server/session.h"

namespace kvdepot {

// Held until destroyed or reset, which takes the engine's lock, counts as a use of the session, and
// starts the background seal that waits for it.
class MutationRight {
 public:
  // NOT_FOUND, FAILED_PRECONDITION if a lease other than `lease_id` (empty: none) is the session's
  // writer, ABORTED if `generation` is not the session's, UNAVAILABLE if somebody else has the
  // right.
  static absl::StatusOr<MutationRight> Take(EngineState* state, const std::string& tenant,
                                            const std::string& session_id, uint64_t generation,
                                            const std::string& lease_id = "")
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu);
  // The same, and FAILED_PRECONDITION if the session has no writer.
  static absl::StatusOr<MutationRight> TakeAsWriter(EngineState* state, const std::string& tenant,
                                                    const std::string& session_id,
                                                    uint64_t generation,
                                                    const std::string& lease_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu);
  // In order to become the writer, or to get more room as the writer: FAILED_PRECONDITION if
  // another lease is, UNAVAILABLE.
  static absl::StatusOr<MutationRight> TakeToMap(EngineState* state,
                                                 const std::shared_ptr<Session>& session,
                                                 const std::string& lease_id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu);
  // In order to take over after a writer: also UNAVAILABLE if that has been done.
  static absl::StatusOr<MutationRight> TakeToTakeOver(EngineState* state,
                                                      const std::shared_ptr<Session>& session)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu);

  MutationRight() = default;
  MutationRight(MutationRight&& other) noexcept;
  MutationRight& operator=(MutationRight&& other) noexcept;
  ~MutationRight();

  // Null: not held.
  Session* session() const { return session_.get(); }
  const std::shared_ptr<Session>& shared_session() const { return session_; }

 private:
  MutationRight(EngineState* state, std::shared_ptr<Session> session);

  EngineState* state_ = nullptr;
  std::shared_ptr<Session> session_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_MUTATION_RIGHT_H_
