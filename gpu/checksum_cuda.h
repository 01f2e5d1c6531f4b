// Checksums of segments in device memory (gpu/FORMAT.md, "Checksum").
//
// All functions queue work on `stream`, do not wait and allocate nothing; they may be captured in a
// graph. The error is that of queueing.
#ifndef KVDEPOT_GPU_CHECKSUM_CUDA_H_
#define KVDEPOT_GPU_CHECKSUM_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/segment_job.h"

namespace kvdepot {

// Bytes of device memory, aligned to 16, that the functions below need until their work is done.
size_t ChecksumWorkspaceBytes(int job_count, size_t size_bytes_max);

// checksums[i] (device memory) becomes that of jobs[i], whatever its header says. Of a job,
// `segment` and `size_bytes` are read. No job is larger than `size_bytes_max`.
cudaError_t ComputeChecksums(const SegmentJob* jobs, int job_count, size_t size_bytes_max,
                             uint64_t* checksums, std::byte* workspace, cudaStream_t stream);

// Writes each segment's checksum into its header.
cudaError_t WriteChecksums(const SegmentJob* jobs, int job_count, size_t size_bytes_max,
                           std::byte* workspace, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_CHECKSUM_CUDA_H_
