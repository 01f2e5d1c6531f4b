// Whether a process may share memory with a daemon, by what each of them sees: pure functions of
// facts. Each returns what it found, in words, or what is wrong and what to change.
#ifndef KVDEPOT_CLIENT_CLI_PROCESS_CHECKS_H_
#define KVDEPOT_CLIENT_CLI_PROCESS_CHECKS_H_

#include "client/cli/finding.h"
#include "client/cli/process_facts.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace kvdepot::cli {

// Whether this process may open the daemon's socket.
Finding CheckSocket(const ProcessFacts& facts);

// Whether this process can prove who it is, and whether the two mistake each other's PID.
Finding CheckProcess(const ProcessFacts& facts, const v1::GetServerInfoResponse& info);

// Whether this process can map what the daemon's device holds.
Finding CheckDevice(const ProcessFacts& facts, const v1::GetServerInfoResponse& info);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_PROCESS_CHECKS_H_
