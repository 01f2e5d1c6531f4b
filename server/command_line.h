// The command line: flags of options.cc, --help, --version, --flagfile.
#ifndef KVDEPOT_SERVER_COMMAND_LINE_H_
#define KVDEPOT_SERVER_COMMAND_LINE_H_

#include "absl/status/status.h"

namespace kvdepot {

// Sets the flags. INVALID_ARGUMENT names the argument that is wrong. --help and --version print and
// end the process.
absl::Status ParseCommandLine(int argc, char** argv);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_COMMAND_LINE_H_
