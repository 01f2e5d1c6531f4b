// The daemon's settings as its user gives them: flags of options.cc on the command line, the same
// names in a file, --check_config, --help and --version.
//
// The file, --config=FILE, has a line `name = value` a flag; '#' starts a comment. What stands on
// the command line counts before what stands in the file.
#ifndef KVDEPOT_SERVER_COMMAND_LINE_H_
#define KVDEPOT_SERVER_COMMAND_LINE_H_

#include <map>
#include <string>

#include "absl/status/status.h"

namespace kvdepot {

// Sets the flags. INVALID_ARGUMENT names the argument, or the file and line, that is wrong. --help
// and --version print and end the process.
absl::Status ParseCommandLine(int argc, char** argv);

// --check_config: nothing is to be served.
bool OnlyChecksConfig();

// All settings by name, as flags write them.
using SettingValues = std::map<std::string, std::string>;
SettingValues CurrentSettings();

// Reads the file again and sets the flags anew, flags that are on neither to their defaults.
// INVALID_ARGUMENT as above: then some are set and some are not.
absl::Status ReparseCommandLine(int argc, char** argv);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_COMMAND_LINE_H_
