// A backend on the CPU that encodes nothing while a test holds its gate.
#ifndef KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_

#include "absl/types/span.h"
#include "server/mutex.h"
#include "tests/gpu/forwarding_backend.h"

namespace kvdepot {

// Open at first.
class Gate {
 public:
  void Close() {
    MutexLock lock(mu_);
    open_ = false;
    reached_ = false;
  }
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(mu_);
    reached_ = true;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
  }
  // Somebody stands at it since it was closed, or has passed.
  void WaitUntilReached() {
    MutexLock lock(mu_);
    while (!reached_) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mu_) = true;
  bool reached_ ABSL_GUARDED_BY(mu_) = false;
};

class GatedBackend final : public ForwardingBackend {
 public:
  // `gate` outlives the backend.
  explicit GatedBackend(Gate* gate) : ForwardingBackend(MakeCpuBackend(1)), gate_(gate) {}

  void Encode(absl::Span<EncodeJob> jobs) override {
    gate_->Pass();
    ForwardingBackend::Encode(jobs);
  }

 private:
  Gate* const gate_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_
