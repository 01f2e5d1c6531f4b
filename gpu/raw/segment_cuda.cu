#include <cstdint>

#include "gpu/checksum_cuda.h"
#include "gpu/raw/segment_cuda.h"
#include "gpu/segment_header.h"
#include "gpu/segment_header_cuda.h"

namespace kvdepot::raw {
namespace {

constexpr int kThreads = 256;
// Words of 16 bytes that a thread copies, all in flight at once.
constexpr int kWordsPerThread = 8;
constexpr uint32_t kWordsPerThreadBlock = kThreads * kWordsPerThread;

// blockIdx: piece of a record, head and block of the segment, job.
__global__ void __launch_bounds__(kThreads)
    CopyRecords(const SegmentJob* jobs, uint32_t kv_heads, uint32_t record_words) {
  const SegmentJob& job = jobs[blockIdx.z];
  const uint32_t head = blockIdx.y % kv_heads;
  const uint32_t block = blockIdx.y / kv_heads;
  if (block >= job.block_count) return;
  // A head's share of an exact extent is one raw record.
  const uint4* from =
      reinterpret_cast<const uint4*>(job.blocks[block]) + static_cast<size_t>(head) * record_words;
  uint4* to =
      reinterpret_cast<uint4*>(job.segment + SegmentHeaderBytes(static_cast<int>(kv_heads))) +
      (static_cast<size_t>(head) * job.block_count + block) * record_words;
  const uint32_t begin = blockIdx.x * kWordsPerThreadBlock + threadIdx.x;
  uint4 words[kWordsPerThread];
#pragma unroll
  for (uint32_t i = 0; i < kWordsPerThread; ++i) {
    if (begin + i * kThreads < record_words) words[i] = from[begin + i * kThreads];
  }
#pragma unroll
  for (uint32_t i = 0; i < kWordsPerThread; ++i) {
    if (begin + i * kThreads < record_words) to[begin + i * kThreads] = words[i];
  }
}

}  // namespace

cudaError_t EncodeSegments(const SegmentBatch& batch, std::byte* workspace, cudaStream_t stream) {
  if (batch.job_count == 0) return cudaSuccess;
  cudaError_t error = WriteHeaders(batch, Codec::kRaw, nullptr, stream);
  if (error != cudaSuccess) return error;
  const uint32_t record_words = static_cast<uint32_t>(
      2 * kBlockTokens * static_cast<size_t>(batch.head_dim) * DTypeBytes(batch.dtype) / 16);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((record_words + kWordsPerThreadBlock - 1) / kWordsPerThreadBlock,
                        static_cast<unsigned>(batch.kv_heads * batch.block_count_max),
                        static_cast<unsigned>(batch.job_count));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  error = cudaLaunchKernelEx(&config, CopyRecords, batch.jobs,
                             static_cast<uint32_t>(batch.kv_heads), record_words);
  if (error != cudaSuccess) return error;
  return WriteChecksums(batch.jobs, batch.job_count, batch.size_bytes_max, workspace, stream);
}

}  // namespace kvdepot::raw
