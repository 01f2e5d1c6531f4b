// Raw segments on the GPU.
#ifndef KVDEPOT_GPU_RAW_SEGMENT_CUDA_H_
#define KVDEPOT_GPU_RAW_SEGMENT_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "gpu/segment_job.h"

namespace kvdepot::raw {

// Queues on `stream` the writing of every segment of `batch`: header with checksum, records. Does
// not wait, allocates nothing, may be captured in a graph; the error is that of queueing.
// `workspace` is device memory of ChecksumWorkspaceBytes() of the batch (gpu/checksum_cuda.h).
cudaError_t EncodeSegments(const SegmentBatch& batch, std::byte* workspace, cudaStream_t stream);

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_SEGMENT_CUDA_H_
