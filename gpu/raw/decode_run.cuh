// A thread block copies K or V of one head of exact tokens, converting them.
#ifndef KVDEPOT_GPU_RAW_DECODE_RUN_CUH_
#define KVDEPOT_GPU_RAW_DECODE_RUN_CUH_

#include "gpu/decode_runs_cuda.h"
#include "gpu/load_values.cuh"
#include "gpu/segment_header.h"
#include "gpu/store_values.cuh"

namespace kvdepot::raw {

// Row of token `token` of K or V of one head; `row_bytes` a row.
__device__ inline const std::byte* RowOf(const TokenRun& run, int kv_heads, int tensor, int token,
                                         size_t row_bytes) {
  const size_t capacity = static_cast<size_t>(run.capacity);
  if (run.form == TokenRun::Form::kExact) {
    return run.data +
           (static_cast<size_t>(tensor) * capacity + static_cast<size_t>(token)) * row_bytes;
  }
  // Records of K[64] and V[64], block after block, head after head.
  const size_t head = static_cast<size_t>(tensor / 2);
  const size_t record =
      head * (capacity / kBlockTokens) + static_cast<size_t>(token / kBlockTokens);
  const size_t row = (2 * record + static_cast<size_t>(tensor % 2)) * kBlockTokens +
                     static_cast<size_t>(token % kBlockTokens);
  return run.data + SegmentHeaderBytes(kv_heads) + row * row_bytes;
}

// Tokens [begin, end) of the extent or segment of `job`. Called by all `kThreads` threads.
template <int kThreads, int kHeadDim, DType kFrom, DType kTo>
__device__ void DecodeRunTokens(const DecodeBatch& batch, const DecodeRun& job, int tensor,
                                int begin, int end) {
  constexpr int kOctets = kHeadDim / 8;
  constexpr size_t kFromBytes = kHeadDim * DTypeBytes(kFrom);
  constexpr size_t kToBytes = kHeadDim * DTypeBytes(kTo);
  const int octet = static_cast<int>(threadIdx.x) % kOctets;
  std::byte* const output = tensor % 2 == 0 ? batch.k : batch.v;
#pragma unroll 4
  for (int token = begin + static_cast<int>(threadIdx.x) / kOctets; token < end;
       token += kThreads / kOctets) {
    const size_t target = (job.target + static_cast<size_t>(token - job.run.first)) *
                              static_cast<size_t>(batch.kv_heads) +
                          static_cast<size_t>(tensor / 2);
    float values[8];
    LoadOctet<kFrom>(RowOf(job.run, batch.kv_heads, tensor, token, kFromBytes), octet, values);
    StoreOctet<kTo>(output + target * kToBytes, octet, values);
  }
}

}  // namespace kvdepot::raw

#endif  // KVDEPOT_GPU_RAW_DECODE_RUN_CUH_
