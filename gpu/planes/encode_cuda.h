// `planes` on the GPU: from exact blocks to whole segments, the same bytes as encode_cpu.h writes.
//
// All functions queue work on `stream`, do not wait and allocate nothing; they may be captured in a
// graph. The error is that of queueing. The device is of compute capability 9.0 or later.
#ifndef KVDEPOT_GPU_PLANES_ENCODE_CUDA_H_
#define KVDEPOT_GPU_PLANES_ENCODE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/segment_job.h"

namespace kvdepot::planes {

// Writes every segment of `batch`: header with checksum, tables, records. out_of_range[i] (device
// memory) becomes 1 if the values of job i leave the range of the format, else 0; where it is 1 the
// segment's bytes mean nothing and the caller writes the tokens as raw. Values are finite.
// `workspace` is device memory of ChecksumWorkspaceBytes() of the batch (gpu/checksum_cuda.h).
cudaError_t EncodeSegments(const SegmentBatch& batch, uint32_t* out_of_range, std::byte* workspace,
                           cudaStream_t stream);

// variance[job][kv_head][K, V][channel] (device memory) as ChannelVariance of encode_cpu.h. Of a
// job, `blocks` and `block_count` are read.
cudaError_t ChannelVariances(const SegmentBatch& batch, float* variance, cudaStream_t stream);

}  // namespace kvdepot::planes

#endif  // KVDEPOT_GPU_PLANES_ENCODE_CUDA_H_
