// A backend on the CPU that takes many segments at once, as a GPU does, and keeps count.
#ifndef KVDEPOT_TESTS_SERVER_BATCHING_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_BATCHING_BACKEND_H_

#include <cstddef>
#include <vector>

#include "tests/gpu/forwarding_backend.h"

namespace kvdepot {

class BatchingBackend final : public ForwardingBackend {
 public:
  // `job_counts`, unless null, gets an entry for every Encode and outlives the backend.
  BatchingBackend(size_t encode_bytes_max, std::vector<size_t>* job_counts)
      : ForwardingBackend(MakeCpuBackend(1)),
        encode_bytes_max_(encode_bytes_max),
        job_counts_(job_counts) {}

  size_t encode_bytes_max() const override { return encode_bytes_max_; }
  void Encode(absl::Span<EncodeJob> jobs) override {
    if (job_counts_ != nullptr) job_counts_->push_back(jobs.size());
    ForwardingBackend::Encode(jobs);
  }

 private:
  const size_t encode_bytes_max_;
  std::vector<size_t>* const job_counts_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_BATCHING_BACKEND_H_
