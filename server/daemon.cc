#include "server/daemon.h"

#include <grpc/support/log.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/command_line.h"
#include "server/options.h"

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

}  // namespace

int RunDaemon(int argc, char** argv, Server::Hooks hooks) {
  // Blocked before any thread exists, so that all of them inherit it and only sigwait sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A peer that left is an error of its write, not the end of the daemon.
  std::signal(SIGPIPE, SIG_IGN);
  // What gRPC would print comes back to us as a status, and our log has one form.
  gpr_set_log_function([](gpr_log_func_args*) {});

  absl::Status status = ParseCommandLine(argc, argv);
  if (!status.ok()) return Fail(status, kExitWrongOptions);
  const Options options = OptionsFromFlags();
  status = options.Validate();
  if (!status.ok()) return Fail(status, kExitWrongOptions);
  // A failed device ends the daemon the way an operator does: clients are told, then it goes.
  hooks.on_fault = [] { kill(getpid(), SIGTERM); };
  // While the daemon waits for memory nobody else looks at the signals.
  hooks.pause = [signals](absl::Duration duration) {
    const timespec timeout = absl::ToTimespec(duration);
    return sigtimedwait(&signals, nullptr, &timeout) < 0;
  };
  const absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(options, hooks);
  if (absl::IsCancelled(server.status())) return 0;
  if (!server.ok()) return Fail(server.status(), kExitNotStarted);

  int received = 0;
  sigwait(&signals, &received);
  (*server)->Drain();
  const absl::Status fault = (*server)->fault();
  return fault.ok() ? 0 : Fail(fault, kExitDeviceFailed);
}

}  // namespace kvdepot
