#include "client/cli/codec_plot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/json.h"
#include "gpu/file_descriptor.h"

namespace kvdepot::cli {
namespace {

constexpr char kScript[] =
#include "client/cli/plot_codecs_script.inc"
    ;

// The first one of PATH may be another than the one that Debian's packages are for.
constexpr const char* kPythons[] = {"python3", "/usr/bin/python3"};

// Ends when the program does. `input` is its standard input; `quiet`: nothing is printed.
bool Succeeds(std::vector<std::string> words, int input, bool quiet) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  // Standard output is for results.
  posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
  if (quiet) {
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  }
  pid_t process = 0;
  const int error =
      posix_spawnp(&process, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return false;
  int status = 0;
  while (waitpid(process, &status, 0) < 0) {
    if (errno != EINTR) return false;
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

absl::StatusOr<std::string> FindPlottingPython() {
  const FileDescriptor nothing(open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const char* python : kPythons) {
    if (Succeeds({python, "-c", "import matplotlib"}, nothing.get(), true)) return python;
  }
  return absl::FailedPreconditionError(
      "plot: needs python3 with matplotlib; install Debian's python3-matplotlib, or "
      "`python3 -m pip install matplotlib`");
}

absl::Status CheckWritable(const std::string& path) {
  const bool existed = access(path.c_str(), F_OK) == 0;
  const FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  if (!file) {
    return absl::InvalidArgumentError(
        absl::StrCat("plot: cannot write ", path, ": ", strerror(errno)));
  }
  if (!existed) unlink(path.c_str());
  return absl::OkStatus();
}

absl::Status PlotCodecs(const std::string& python, const google::protobuf::Struct& report,
                        const std::string& path) {
  const std::string json = JsonText(report);
  const FileDescriptor input(memfd_create("codec_report", MFD_CLOEXEC));
  for (size_t written = 0; written < json.size();) {
    const ssize_t count = write(input.get(), json.data() + written, json.size() - written);
    if (count < 0) {
      return absl::InternalError(absl::StrCat("plot: ", strerror(errno)));
    }
    written += static_cast<size_t>(count);
  }
  lseek(input.get(), 0, SEEK_SET);
  if (Succeeds({python, "-c", kScript, path}, input.get(), false)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("plot: ", python, " could not draw ", path));
}

}  // namespace kvdepot::cli
