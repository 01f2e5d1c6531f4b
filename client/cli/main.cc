// `kvdepot`: look at a daemon, its sessions and its health from a shell.
//
// Exit codes: 0 ok, 1 failed, 2 usage. Results go to standard output, everything else to standard
// error.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/cli/command.h"
#include "client/cli/command_line.h"
#include "client/printable.h"

namespace kvdepot::cli {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

const std::vector<Command>& Commands() {
  static const auto* const kCommands = new std::vector<Command>{
      {"info", {}, "What the daemon is: version, device, memory, limits.", &RunInfo},
      {"health", {}, "Whether the daemon at a Unix socket serves; needs no token.", &RunHealth},
      {"sessions", {}, "Lists the sessions of the tenant.", &RunSessions},
      {"show", {"SESSION"}, "State of one session, by name or id.", &RunShow},
      {"seal", {"SESSION"}, "Compresses all but the window of a session that will rest.", &RunSeal},
      {"delete", {"SESSION"}, "Deletes a session and frees its memory.", &RunDelete},
      {"budget",
       {"AMOUNT"},
       "Sets the memory of all sessions: bytes (8GiB) or a part of the device's (25%).",
       &RunBudget},
      {"size", {}, "Bytes of a model's sessions by codec and profile; asks no daemon.", &RunSize},
      {"bench", {}, "Append and attend throughput with synthetic data.", &RunBench},
      {"bench codec",
       {},
       "Bits, errors and speed of every codec and profile on a dump of a model's KV.",
       &RunBenchCodec},
      {"doctor", {}, "Checks the daemon step by step and says what to do.", &RunDoctor},
      {"demo", {}, "Compresses a real model's KV and compares with exact attention.", &RunDemo},
  };
  return *kCommands;
}

int Fail(const absl::Status& status) {
  const bool usage = IsUsageError(status);
  const std::string code = usage ? "" : absl::StrCat(absl::StatusCodeToString(status.code()), ": ");
  std::fprintf(stderr, "kvdepot: %s%s\n", code.c_str(), Printable(status.message()).c_str());
  return usage ? kExitUsage : kExitFailed;
}

// What is printed waits in memory: on a full disk it is here that it does not come through.
absl::Status FlushResults() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return absl::OkStatus();
  return absl::DataLossError("cannot write the whole result to standard output");
}

int Main(const std::vector<std::string>& words) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(words, Commands());
  if (!line.ok()) return Fail(line.status());
  if (line->help) {
    std::fputs(HelpText(line->command, Commands()).c_str(), stdout);
  }
  absl::Status status = line->help ? absl::OkStatus() : line->command->run(line->arguments);
  status.Update(FlushResults());
  return status.ok() ? kExitOk : Fail(status);
}

}  // namespace
}  // namespace kvdepot::cli

int main(int argc, char** argv) {
  return kvdepot::cli::Main(std::vector<std::string>(argv + 1, argv + argc));
}
