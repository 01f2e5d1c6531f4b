#include "gpu/segment_header.h"
#include "gpu/segment_header_cuda.h"

namespace kvdepot {
namespace {

constexpr int kThreads = 128;

// One thread block a job.
__global__ void __launch_bounds__(kThreads)
    WriteHeadersKernel(const SegmentJob* jobs, int kv_heads, int head_dim, DType dtype, Codec codec,
                       uint32_t* out_of_range) {
  const SegmentJob& job = jobs[blockIdx.x];
  if (threadIdx.x == 0) {
    *reinterpret_cast<SegmentHeader*>(job.segment) =
        MakeSegmentHeader(codec, dtype, job.block_count * kBlockTokens, kv_heads, head_dim,
                          job.size_bytes, job.calibration_hash);
    if (out_of_range != nullptr) out_of_range[blockIdx.x] = 0;
  }
  std::byte* patterns = job.segment + sizeof(SegmentHeader);
  const int count = static_cast<int>(SegmentHeaderBytes(kv_heads) - sizeof(SegmentHeader));
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    uint8_t pattern = 0;
    if (codec == Codec::kPlanes && i < 2 * kv_heads) {
      const DeviceHead& head = job.heads[i / 2];
      pattern = i % 2 == 0 ? head.k_pattern : head.v_pattern;
    }
    patterns[i] = static_cast<std::byte>(pattern);
  }
}

__global__ void __launch_bounds__(kThreads)
    SetSizesKernel(SegmentJob* jobs, int job_count, uint64_t header_bytes,
                   const uint64_t* body_bytes) {
  const int job = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (job < job_count) jobs[job].size_bytes = header_bytes + body_bytes[job];
}

}  // namespace

cudaError_t SetSegmentSizes(const SegmentBatch& batch, size_t header_bytes,
                            const uint64_t* body_bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((batch.job_count + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, SetSizesKernel, const_cast<SegmentJob*>(batch.jobs),
                            batch.job_count, static_cast<uint64_t>(header_bytes), body_bytes);
}

cudaError_t WriteHeaders(const SegmentBatch& batch, Codec codec, uint32_t* out_of_range,
                         cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch.job_count));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, WriteHeadersKernel, batch.jobs, batch.kv_heads, batch.head_dim,
                            batch.dtype, codec, out_of_range);
}

}  // namespace kvdepot
