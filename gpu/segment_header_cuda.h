// Headers of segments, written by the device.
#ifndef KVDEPOT_GPU_SEGMENT_HEADER_CUDA_H_
#define KVDEPOT_GPU_SEGMENT_HEADER_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/segment_job.h"

namespace kvdepot {

// Queues on `stream` the writing of every job's header but for its checksum, and sets
// out_of_range[job] = 0 where that is not null. Does not wait; the error is that of queueing.
cudaError_t WriteHeaders(const SegmentBatch& batch, Codec codec, uint32_t* out_of_range,
                         cudaStream_t stream);

// Queues on `stream`: the size of every job becomes `header_bytes` + body_bytes[job] (device
// memory).
cudaError_t SetSegmentSizes(const SegmentBatch& batch, size_t header_bytes,
                            const uint64_t* body_bytes, cudaStream_t stream);

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_SEGMENT_HEADER_CUDA_H_
