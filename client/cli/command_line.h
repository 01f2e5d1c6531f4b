// Command line to command, arguments and Abseil flags.
//
// Abseil's own parser exits with 1 on a bad flag and accepts every flag of the program for every
// command. Here the exit code is the caller's business, and a flag belongs to the command in whose
// source file it is defined (`bench codec`: bench_codec.cc). A flag whose name begins with that
// file's is written without it: `bench codec --layers` sets bench_codec_layers, whatever `bench
// --layers` is. Commands that share a flag's name so agree on whether it is a boolean.
#ifndef KVDEPOT_CLIENT_CLI_COMMAND_LINE_H_
#define KVDEPOT_CLIENT_CLI_COMMAND_LINE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cli/command.h"

namespace kvdepot::cli {

struct CommandLine {
  const Command* command = nullptr;  // Null: help on the program as a whole.
  Arguments arguments;
  bool help = false;
};

// Sets the flags that `words` (without the program's name) contain. Flags may stand before or
// behind the command, as
// --name=value, --name value, or for a boolean --name and --noname; `--` ends them. In a name - and
// _ are the same. A usage error
// changes no promise: some flags may have been set.
absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> words,
                                             absl::Span<const Command> commands);

// What --help prints: about one command, or about the program if `command` is null.
std::string HelpText(const Command* command, absl::Span<const Command> commands);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_COMMAND_LINE_H_
