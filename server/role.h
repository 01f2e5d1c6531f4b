// What a caller's token is for, and which calls that allows.
#ifndef KVDEPOT_SERVER_ROLE_H_
#define KVDEPOT_SERVER_ROLE_H_

#include "absl/strings/string_view.h"
#include "server/rpc_method.h"

namespace kvdepot {

// kClient stores and reads the sessions of its tenant; kOperator changes the daemon, and reads no
// session, so that the token of a script that sets budgets opens nobody's conversation. kBoth is
// whoever may open the socket of a daemon without tokens.
enum class Role { kClient, kOperator, kBoth };

inline constexpr absl::string_view RoleName(Role role) {
  return role == Role::kClient ? "client" : role == Role::kOperator ? "operator" : "both";
}

// kBoth: either will do.
constexpr Role NeededRole(RpcMethod method) {
  switch (method) {
    case RpcMethod::kGetServerInfo:
      return Role::kBoth;
    case RpcMethod::kSetBudget:
      return Role::kOperator;
    default:
      return Role::kClient;
  }
}

constexpr bool MayCall(Role role, RpcMethod method) {
  const Role needed = NeededRole(method);
  return role == Role::kBoth || needed == Role::kBoth || role == needed;
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ROLE_H_
