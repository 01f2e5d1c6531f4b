// A backend on the CPU whose device can be made to fail.
#ifndef KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_

#include <atomic>

#include "absl/status/status.h"
#include "tests/gpu/forwarding_backend.h"

namespace kvdepot {

class FailingBackend final : public ForwardingBackend {
 public:
  // `failed` outlives the backend. While it is true the device has failed.
  explicit FailingBackend(const std::atomic<bool>* failed)
      : ForwardingBackend(MakeCpuBackend(1)), failed_(failed) {}

  absl::Status health() const override {
    return *failed_ ? absl::InternalError("cuda: it broke") : absl::OkStatus();
  }

 private:
  const std::atomic<bool>* const failed_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_
