// A backend on the CPU that says whether copies within the device, tokens from a client's buffer
// there included, may still be under way, as on a GPU.
#ifndef KVDEPOT_TESTS_SERVER_LATE_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_LATE_BACKEND_H_

#include <atomic>

#include "tests/gpu/forwarding_backend.h"

namespace kvdepot {

class LateBackend final : public ForwardingBackend {
 public:
  // `copies` outlives the backend: how many nobody has waited for.
  explicit LateBackend(std::atomic<int>* copies)
      : ForwardingBackend(MakeCpuBackend(1)), copies_(copies) {}

  void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from, std::byte* to,
                  int capacity, int count) override {
    ++*copies_;
    ForwardingBackend::CopyTokens(shape, dtype, from, to, capacity, count);
  }
  void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                   int count, std::byte* extent, int capacity, int first_slot) override {
    if (tokens.space == MemorySpace::kDevice) ++*copies_;
    ForwardingBackend::WriteTokens(shape, dtype, tokens, from, count, extent, capacity, first_slot);
  }
  void Synchronize() override { *copies_ = 0; }

 private:
  std::atomic<int>* const copies_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_LATE_BACKEND_H_
