// Whole segments on the GPU: from exact blocks to sealed bytes, many at a time, and whether those
// are intact.
#ifndef KVDEPOT_GPU_SEGMENTS_CUDA_H_
#define KVDEPOT_GPU_SEGMENTS_CUDA_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gpu/backend.h"
#include "gpu/device_memory.h"
#include "gpu/kernel_arguments.h"
#include "gpu/segment_job.h"

namespace kvdepot {

// Not thread-safe. Methods queue work on `stream` and return when it is done; an error is the
// device's unless a method says otherwise.
class CudaSegments {
 public:
  // At about 1 TB/s of exact tokens (planes/PERFORMANCE.md) an eighth of a millisecond: a short
  // piece of work, and far more than what launches and waiting for them cost.
  static constexpr size_t kEncodeBytesMax = size_t{128} << 20;

  CudaSegments() = default;
  static absl::StatusOr<CudaSegments> Create();

  // As Backend::Encode: jobs of one geometry and codec that follow each other are one launch, and
  // all of them are waited for once.
  absl::Status Encode(absl::Span<EncodeJob> jobs, const Stream& stream);

  // Of each job [kv_head][K, V][channel], as planes::CalibrationOf takes them, to the vector of its
  // place, which has that size. Jobs of one geometry that follow each other are one launch.
  absl::Status ChannelVariances(absl::Span<const CalibrationJob> jobs,
                                absl::Span<std::vector<float>> variances, const Stream& stream);

  // As ValidateSegment, DATA_LOSS included. `segment` is device memory, aligned to 8 bytes, of
  // `size_bytes`: a multiple of 8, at most that of the largest segment.
  absl::Status Verify(const std::byte* segment, size_t size_bytes, const SegmentGeometry& geometry,
                      const Stream& stream);

 private:
  // Neighbours among the jobs that go into one launch.
  struct Launch {
    absl::Span<const EncodeJob> jobs;
    SegmentBatch batch;
  };
  std::vector<Launch> Divide(absl::Span<const EncodeJob> jobs) const;
  // Its jobs as kernels read them.
  void AddJobs(Launch* launch);
  const std::byte* const* AddBlocks(const SealBlocks& source);
  absl::Status Queue(const Launch& launch, uint32_t* out_of_range, uint64_t* body_bytes,
                     const Stream& stream);
  // Of `packkv`.
  absl::Status QueueBodies(const Launch& launch, uint32_t* out_of_range, uint64_t* body_bytes,
                           const Stream& stream);
  // The first `size_bytes` of results_, in host memory.
  absl::StatusOr<const std::byte*> ReadResults(size_t size_bytes, const Stream& stream);

  KernelArguments arguments_;
  DeviceBuffer checksum_;
  // Of QueueBodies, as large as it has been needed.
  DeviceBuffer bodies_;
  // What kernels tell the host.
  DeviceBuffer results_;
  PinnedBuffer host_results_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENTS_CUDA_H_
