// What is wrong with a daemon, by what it says of itself: pure functions of that.
#ifndef KVDEPOT_CLIENT_CLI_DAEMON_CHECKS_H_
#define KVDEPOT_CLIENT_CLI_DAEMON_CHECKS_H_

#include <cstdint>

#include "client/cli/finding.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace kvdepot::cli {

// Whether this program understands it: its release, and the format of its segments.
Finding CheckVersion(const v1::GetServerInfoResponse& info);

// What computes, on which device.
Finding CheckBackend(const v1::GetServerInfoResponse& info);

// Whether there is room for more tokens: of all tenants, and of this one, whose sessions take
// `tenant_bytes`.
Finding CheckMemory(const v1::GetServerInfoResponse& info, uint64_t tenant_bytes);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_DAEMON_CHECKS_H_
