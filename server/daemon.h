// The life of the daemon's process: flags -> Options -> Server; waits for SIGTERM or SIGINT;
// drains.
#ifndef KVDEPOT_SERVER_DAEMON_H_
#define KVDEPOT_SERVER_DAEMON_H_

#include "server/server.h"

namespace kvdepot {

// The process' exit code: 0 after a drain, or if told to end before it served; 1 if it could not
// start, 2 for wrong options, 3 if the device failed. The reason of every code but 0 is the last
// line on standard error. Before any thread exists; `hooks.on_fault` and `hooks.pause` are set
// here.
int RunDaemon(int argc, char** argv, Server::Hooks hooks = {});

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_DAEMON_H_
