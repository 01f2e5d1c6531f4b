// The commands of `kvdepot`: one file each, this table in main.cc, nothing shared but the files
// named here.
#ifndef KVDEPOT_CLIENT_CLI_COMMAND_H_
#define KVDEPOT_CLIENT_CLI_COMMAND_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvdepot::cli {

using Arguments = std::vector<std::string>;

struct Command {
  // One word, or several with a space between.
  absl::string_view name;
  // Positional arguments as the usage line shows them, one word each; their number is required.
  std::vector<absl::string_view> arguments;
  absl::string_view summary;
  absl::Status (*run)(const Arguments& arguments);
};

absl::Status RunInfo(const Arguments& arguments);
absl::Status RunHealth(const Arguments& arguments);
absl::Status RunSessions(const Arguments& arguments);
absl::Status RunShow(const Arguments& arguments);
absl::Status RunSize(const Arguments& arguments);
absl::Status RunSeal(const Arguments& arguments);
absl::Status RunDelete(const Arguments& arguments);
absl::Status RunBudget(const Arguments& arguments);
absl::Status RunBench(const Arguments& arguments);
absl::Status RunBenchCodec(const Arguments& arguments);
absl::Status RunDoctor(const Arguments& arguments);
absl::Status RunDemo(const Arguments& arguments);

// An error of the caller's command line, for exit code 2. Every other error is exit code 1.
absl::Status UsageError(absl::string_view message);
bool IsUsageError(const absl::Status& status);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_COMMAND_H_
