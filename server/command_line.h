// The daemon's settings as its user gives them: flags of options.cc on the command line, the same
// names in a file, --check_config, --help and --version.
//
// The file, --config=FILE, has a line `name = value` a flag; '#' starts a comment. What stands on
// the command line counts before what stands in the file.
#ifndef KVDEPOT_SERVER_COMMAND_LINE_H_
#define KVDEPOT_SERVER_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvdepot {

// Sets the flags. INVALID_ARGUMENT names the argument, or the file and line, that is wrong. --help
// and --version print and end the process.
absl::Status ParseCommandLine(int argc, char** argv);

// --check_config: nothing is to be served.
bool OnlyChecksConfig();

// Reads the file again and sets the flags anew, flags that are on neither to their defaults.
// Returns the names of those that changed. INVALID_ARGUMENT as above: then nothing changed.
absl::StatusOr<std::vector<std::string>> ReparseCommandLine(int argc, char** argv);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_COMMAND_LINE_H_
