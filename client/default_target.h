// Where a daemon that was started without --listen is found.
#ifndef KVDEPOT_CLIENT_DEFAULT_TARGET_H_
#define KVDEPOT_CLIENT_DEFAULT_TARGET_H_

#include <string>

namespace kvdepot {

// "unix:///run/user/1000/kvdepot/kvdepotd.sock", or "unix:///tmp/kvdepot-1000/kvdepotd.sock" where
// $XDG_RUNTIME_DIR is not set: the rule of kvdepotd's --listen (server/options.h), for the same
// user.
std::string DefaultTarget();

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_DEFAULT_TARGET_H_
