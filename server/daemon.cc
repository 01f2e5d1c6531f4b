#include "server/daemon.h"

#include <grpc/support/log.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "server/command_line.h"
#include "server/options.h"
#include "server/service_manager.h"

namespace kvdepot {
namespace {

constexpr int kExitNotStarted = 1;
constexpr int kExitWrongOptions = 2;
constexpr int kExitDeviceFailed = 3;

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "kvdepotd: %.*s\n", static_cast<int>(status.message().size()),
               status.message().data());
  return exit_code;
}

// A dump would be a copy of keys, values and tokens on disk. Also where core_pattern is a pipe:
// systemd-coredump and apport look at this limit.
void ForbidCoreDumps() {
  const rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
}

// A connection takes a descriptor, a mapped slab another: as many as the administrator allows. The
// lower limit that a process starts with is there for programs that use select().
void AllowManyDescriptors() {
  rlimit files = {};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

// Takes over tokens and certificates, whatever becomes of the settings: one of them may have to go
// at once. Of the settings log_level; others that differ from those in force are named, and stay.
void Reload(int argc, char** argv, SettingValues* in_force, Server* server) {
  std::vector<absl::Status> problems = {server->ReloadTokens(), server->ReloadCertificates(),
                                        ReparseCommandLine(argc, argv)};
  if (problems.back().ok()) problems.back() = OptionsFromFlags().Validate();
  const std::string tokens = absl::StrCat(server->token_count());
  bool failed = false;
  for (const absl::Status& problem : problems) {
    if (problem.ok()) continue;
    failed = true;
    server->log().Error("reload_failed",
                        {{"reason", std::string(problem.message())}, {"tokens", tokens}});
  }
  if (!problems.back().ok()) return;
  const std::string log_level = OptionsFromFlags().log_level;
  server->log().SetLevel(log_level);
  (*in_force)["log_level"] = log_level;
  std::vector<std::string> waiting;
  for (const auto& [name, value] : CurrentSettings()) {
    if (in_force->at(name) != value) waiting.push_back(name);
  }
  if (failed) return;
  server->log().Info("reloaded", {{"tokens", tokens},
                                  {"log_level", log_level},
                                  {"needs_restart", absl::StrJoin(waiting, ",")}});
}

}  // namespace

int RunDaemon(int argc, char** argv, Server::Hooks hooks) {
  // Blocked before any thread exists, so that all of them inherit it and only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A peer that left is an error of its write, not the end of the daemon.
  std::signal(SIGPIPE, SIG_IGN);
  // What gRPC would print comes back to us as a status, and our log has one form.
  gpr_set_log_function([](gpr_log_func_args*) {});

  absl::Status status = ParseCommandLine(argc, argv);
  if (!status.ok()) return Fail(status, kExitWrongOptions);
  const Options options = OptionsFromFlags();
  SettingValues in_force = CurrentSettings();
  if (!options.core_dumps) ForbidCoreDumps();
  AllowManyDescriptors();
  status = options.Validate();
  if (status.ok() && OnlyChecksConfig()) status = Server::CheckFiles(options);
  if (!status.ok()) return Fail(status, kExitWrongOptions);
  if (OnlyChecksConfig()) return 0;
  // A failed device ends the daemon the way an operator does: clients are told, then it goes.
  hooks.on_fault = [] { kill(getpid(), SIGTERM); };
  // While the daemon waits for memory nobody else looks at the signals.
  hooks.pause = [signals](absl::Duration duration) {
    const timespec timeout = absl::ToTimespec(duration);
    const int received = sigtimedwait(&signals, nullptr, &timeout);
    // What SIGHUP asks for is read when the daemon serves.
    return received < 0 || received == SIGHUP;
  };
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options, hooks);
  if (absl::IsCancelled(server.status())) return 0;
  if (!server.ok()) return Fail(server.status(), kExitNotStarted);

  const ServiceManager manager;
  const std::string serving =
      absl::StrCat("serves on ", absl::StrJoin((*server)->addresses(), ","));
  manager.Ready(serving);
  int received = 0;
  while (sigwait(&signals, &received) == 0 && received == SIGHUP) {
    manager.Reloading();
    Reload(argc, argv, &in_force, server->get());
    manager.Ready(serving);
  }
  manager.Stopping();
  const bool closed = (*server)->Drain();
  const absl::Status fault = (*server)->fault();
  const int exit_code = fault.ok() ? 0 : Fail(fault, kExitDeviceFailed);
  // The kernel closes what a peer that does not read keeps open.
  if (!closed) _exit(exit_code);
  return exit_code;
}

}  // namespace kvdepot
