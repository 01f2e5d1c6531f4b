// `packkv` on the GPU: from exact blocks to bodies of segments, the same bytes as EncodeBody writes
// (body.h). The segments' headers and checksums are the caller's.
#ifndef KVDEPOT_GPU_PACKKV_ENCODE_CUDA_H_
#define KVDEPOT_GPU_PACKKV_ENCODE_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "gpu/packkv/options.h"
#include "gpu/segment_job.h"

namespace kvdepot::packkv {

// Whether the GPU encodes by these valid options. Not by greedy repacking: each of its steps waits
// for the one before. Not normalised.
bool EncodesOnCuda(const Options& options);

// Bytes of device memory, aligned to 16, that EncodeBodies needs until its work is done: about one
// a value. Of `batch`, its counts and its geometry are read.
size_t EncodeWorkspaceBytes(const SegmentBatch& batch, const Options& options);

// Writes the body of every segment of `batch`, from `header_bytes` (a multiple of 16) behind the
// segment's begin on; nothing is written before it, or behind BodyBytesMax() of the job. Of a job,
// `blocks`, `block_count` and `segment` are read. Device memory:
//   out_of_range[i]  becomes 1 if the values of job i leave the codec's range, else 0; where it is
//                    1 the body's bytes mean nothing, and the segment is to be raw
//   body_bytes[i]    becomes the length of job i's body, 0 where it is out of range
// Values are finite, `options` such as EncodesOnCuda takes. Queues work on `stream`, does not wait
// and allocates nothing; it may be captured in a graph. The error is that of queueing.
cudaError_t EncodeBodies(const SegmentBatch& batch, const Options& options, size_t header_bytes,
                         uint32_t* out_of_range, uint64_t* body_bytes, std::byte* workspace,
                         cudaStream_t stream);

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_ENCODE_CUDA_H_
