// Who attends over mapped sessions and extends them in a test, on whatever memory their daemon has:
// arrays of the test are host memory, and results are there when a call returns.
#ifndef KVDEPOT_TESTS_INTEGRATION_MAPPED_ARM_H_
#define KVDEPOT_TESTS_INTEGRATION_MAPPED_ARM_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"
#include "tests/integration/mapped_tokens.h"

namespace kvdepot {

class MappedArm {
 public:
  // Of host memory, or of the GPU that sessions of `lease` lie on.
  static std::unique_ptr<MappedArm> For(const Lease& lease);
  virtual ~MappedArm() = default;

  // Before `session` ends.
  virtual void Forget(MappedSession* session) = 0;
  // One token; `query` is null where nobody attends.
  virtual absl::Status Append(MappedSession* session, int layer, const MappedTokens& token,
                              MappedQuery* query) = 0;
  virtual absl::Status Attend(MappedSession* session, int layer, MappedQuery* query) = 0;
  virtual absl::Status Commit(MappedSession* session, absl::Time deadline) = 0;
  virtual absl::Status Refresh(MappedSession* session, absl::Time deadline) = 0;
};

// On the GPU: by graphs, captured once a session, and readers on two streams in turn.
std::unique_ptr<MappedArm> MakeCudaArm();

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_MAPPED_ARM_H_
