#include "server/command_line.h"

#include <string>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "server/version.h"

namespace kvdepot {
namespace {

// Abseil ends the process with code 1 where a flag is wrong; this daemon promises 2, so that a
// supervisor need not try again. Hence the same checks before.
absl::Status CheckArgument(absl::string_view argument) {
  if (!absl::ConsumePrefix(&argument, "--") && !absl::ConsumePrefix(&argument, "-")) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument: ", argument));
  }
  const size_t equals = argument.find('=');
  const absl::string_view name = argument.substr(0, equals);
  // Abseil treats these by name, they are no flags.
  if (name == "version" || absl::StartsWith(name, "help")) return absl::OkStatus();
  absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
  if (flag == nullptr) return absl::InvalidArgumentError(absl::StrCat("unknown flag: --", name));
  if (equals == absl::string_view::npos) {
    if (flag->IsOfType<bool>()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value: --", name, "=..."));
  }
  std::string error;
  if (flag->ParseFrom(argument.substr(equals + 1), &error)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", argument, ": ", error));
}

}  // namespace

absl::Status ParseCommandLine(int argc, char** argv) {
  absl::SetProgramUsageMessage("keeps attention keys and values compressed and attends over them");
  absl::FlagsUsageConfig config;
  config.contains_helpshort_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "options.cc");
  };
  config.contains_help_flags = config.contains_helpshort_flags;
  config.version_string = [] { return absl::StrCat("kvdepotd ", kVersion, "\n"); };
  absl::SetFlagsUsageConfig(config);
  for (int i = 1; i < argc; ++i) {
    if (absl::Status status = CheckArgument(argv[i]); !status.ok()) return status;
  }
  absl::ParseCommandLine(argc, argv);
  return absl::OkStatus();
}

}  // namespace kvdepot
