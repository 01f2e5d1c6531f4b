// kvdepotd: flags -> Options -> Server; waits for SIGTERM or SIGINT; drains.
// Exit codes: 0 after a drain, 1 if it could not start, 2 for wrong options.
#include <grpc/support/log.h>

#include <csignal>
#include <cstdio>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/command_line.h"
#include "server/options.h"
#include "server/server.h"

namespace {

int Fail(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "kvdepotd: %.*s\n", static_cast<int>(status.message().size()),
               status.message().data());
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
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

  absl::Status status = kvdepot::ParseCommandLine(argc, argv);
  if (!status.ok()) return Fail(status, 2);
  const kvdepot::Options options = kvdepot::OptionsFromFlags();
  status = options.Validate();
  if (!status.ok()) return Fail(status, 2);
  const absl::StatusOr<std::unique_ptr<kvdepot::Server>> server = kvdepot::Server::Start(options);
  if (!server.ok()) return Fail(server.status(), 1);

  int received = 0;
  sigwait(&signals, &received);
  (*server)->Drain();
  return 0;
}
