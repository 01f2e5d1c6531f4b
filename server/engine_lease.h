// Leases from open to gone (lease_table.h). None of these calls waits for the device.
#ifndef KVDEPOT_SERVER_ENGINE_LEASE_H_
#define KVDEPOT_SERVER_ENGINE_LEASE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/engine_state.h"
#include "server/mapping_types.h"
#include "server/session_types.h"

namespace kvdepot {

absl::StatusOr<std::string> OpenLease(EngineState* state, const Caller& caller,
                                      std::shared_ptr<LeaseStream> stream);
absl::Status AttachLease(EngineState* state, const std::string& lease_id,
                         std::shared_ptr<LeasePeer> peer);
void KeepLease(EngineState* state, const std::string& lease_id);
absl::Status RetireDirectories(EngineState* state, const std::string& lease_id,
                               const std::string& session_id, uint64_t version);
absl::Status ForgetSlabs(EngineState* state, const std::string& lease_id,
                         const std::vector<uint64_t>& serials);
void EndLease(EngineState* state, const std::string& lease_id, const absl::Status& reason);
void ReleaseLease(EngineState* state, const std::string& lease_id);
void ExpireLeases(EngineState* state);
absl::Status UnmapSession(EngineState* state, const Caller& caller, const std::string& lease_id,
                          const std::string& session_id);

// The lease, which may map: NOT_FOUND, or FAILED_PRECONDITION if its right has ended or its process
// is not known yet.
absl::StatusOr<LeaseRecord*> FindUsableLease(EngineState* state, const std::string& tenant,
                                             const std::string& lease_id)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ENGINE_LEASE_H_
