// Mapped sessions between wire and engine. Errors as in session_convert.h.
#ifndef KVDEPOT_SERVER_SERVICES_MAPPING_CONVERT_H_
#define KVDEPOT_SERVER_SERVICES_MAPPING_CONVERT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "kvdepot/v1/mapping.pb.h"
#include "server/map_reply.h"
#include "server/mapping_types.h"

namespace kvdepot {

// Of directories and life sockets (mapping.proto). A change of either is a new number.
inline constexpr uint32_t kLayoutVersion = 1;

// FAILED_PRECONDITION naming both.
absl::Status CheckLayoutVersion(uint32_t layout_version);
// FAILED_PRECONDITION naming both.
absl::Status CheckEpoch(uint64_t epoch, uint64_t own_epoch);
absl::Status CheckLeaseId(absl::string_view lease_id);

absl::StatusOr<MapRequest> ToMapRequest(const v1::MapSessionRequest& request);
absl::StatusOr<CommitRequest> ToCommitRequest(const v1::CommitRequest& request);

void ToProto(const SlabNotice& notice, v1::MappedSlab* slab);
// Of reply.directory, what reply.base does not say.
void ToProto(const MapReply& reply, v1::MappedDirectory* directory);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_MAPPING_CONVERT_H_
