// kvdepotd whose device fails at the first Attend after a SIGUSR1: on a GPU by a kernel that traps,
// on the CPU by saying so.
#include <atomic>
#include <csignal>
#include <memory>
#include <utility>

#include "server/daemon.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/integration/trap.h"

namespace kvdepot {
namespace {

std::atomic<bool> fail_next{false};

class FaultyBackend final : public ForwardingBackend {
 public:
  FaultyBackend(std::unique_ptr<Backend> to, std::function<void(const absl::Status&)> on_fault)
      : ForwardingBackend(std::move(to)), on_fault_(std::move(on_fault)) {}

  absl::Status health() const override {
    return failed_ ? absl::InternalError("cpu: made to fail") : ForwardingBackend::health();
  }

  absl::Status Attend(absl::Span<const AttendItem> items) override {
    if (fail_next.exchange(false)) {
      if (name() == "cuda") {
        Trap();
      } else {
        failed_ = true;
        on_fault_(health());
      }
    }
    return ForwardingBackend::Attend(items);
  }

 private:
  const std::function<void(const absl::Status&)> on_fault_;
  std::atomic<bool> failed_{false};
};

absl::StatusOr<std::unique_ptr<Backend>> MakeFaultyBackend(const BackendOptions& options) {
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(options);
  if (!backend.ok()) return backend.status();
  return std::make_unique<FaultyBackend>(*std::move(backend), options.cuda.on_fault);
}

}  // namespace
}  // namespace kvdepot

int main(int argc, char** argv) {
  std::signal(SIGUSR1, [](int) { kvdepot::fail_next = true; });
  kvdepot::Server::Hooks hooks;
  hooks.make_backend = kvdepot::MakeFaultyBackend;
  return kvdepot::RunDaemon(argc, argv, std::move(hooks));
}
