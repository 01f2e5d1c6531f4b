// How a user names a daemon.
#ifndef KVDEPOT_CLIENT_TARGET_H_
#define KVDEPOT_CLIENT_TARGET_H_

#include <string>

#include "absl/strings/string_view.h"

namespace kvdepot {

// Where a daemon that was started without --listen is found:
// "unix:///run/user/1000/kvdepot/kvdepotd.sock", or "unix:///tmp/kvdepot-1000/kvdepotd.sock" where
// $XDG_RUNTIME_DIR is not set: the rule of kvdepotd's --listen (server/options.h), for the same
// user.
std::string DefaultTarget();

// gRPC's name of a daemon that a user named: by nothing, which is DefaultTarget(), by the absolute
// path of its Unix socket, or as gRPC does ("unix:/path", "host:port").
std::string TargetOf(absl::string_view named);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_TARGET_H_
