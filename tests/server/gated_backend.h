// A backend that encodes and attends only while a test's gate is open.
#ifndef KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/server/gate.h"

namespace kvdepot {

class GatedBackend final : public ForwardingBackend {
 public:
  // `gate` outlives the backend.
  GatedBackend(std::unique_ptr<Backend> to, Gate* gate)
      : ForwardingBackend(std::move(to)), gate_(gate) {}

  void Encode(absl::Span<EncodeJob> jobs) override {
    gate_->Pass();
    ForwardingBackend::Encode(jobs);
  }
  absl::Status Attend(absl::Span<const AttendItem> items) override {
    gate_->Pass();
    return ForwardingBackend::Attend(items);
  }

 private:
  Gate* const gate_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_GATED_BACKEND_H_
