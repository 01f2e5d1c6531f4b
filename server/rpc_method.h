// The RPCs of KvDepotService, as a bounded set for metrics and log lines.
#ifndef KVDEPOT_SERVER_RPC_METHOD_H_
#define KVDEPOT_SERVER_RPC_METHOD_H_

#include "absl/strings/string_view.h"

namespace kvdepot {

enum class RpcMethod {
  kGetServerInfo,
  kCreateSession,
  kGetSession,
  kListSessions,
  kDeleteSession,
  kTruncateSession,
  kSealSession,
  kTouchSession,
  kPutCalibration,
  kListCalibrations,
  kAppend,
  kAttend,
  kDecode,
  kFetch,
  kSetBudget,
  kOpenLease,
  kMapSession,
  kCommit,
  kUnmapSession,
  kRegisterBuffer,
  kUnregisterBuffer,
};
inline constexpr int kRpcMethodCount = 21;

// In the order of the enumeration.
inline constexpr absl::string_view kRpcMethodNames[kRpcMethodCount] = {
    "GetServerInfo",   "CreateSession", "GetSession",   "ListSessions",   "DeleteSession",
    "TruncateSession", "SealSession",   "TouchSession", "PutCalibration", "ListCalibrations",
    "Append",          "Attend",        "Decode",       "Fetch",          "SetBudget",
    "OpenLease",       "MapSession",    "Commit",       "UnmapSession",   "RegisterBuffer",
    "UnregisterBuffer"};

constexpr absl::string_view RpcMethodName(RpcMethod method) {
  return kRpcMethodNames[static_cast<int>(method)];
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_RPC_METHOD_H_
