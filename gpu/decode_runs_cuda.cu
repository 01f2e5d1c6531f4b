#include "gpu/decode_runs_cuda.h"
#include "gpu/packkv/decode_run.cuh"
#include "gpu/planes/decode_run.cuh"
#include "gpu/raw/decode_run.cuh"

namespace kvdepot {
namespace {

using planes::kDecodeThreads;

// Steps of DecodeRunBlocks in one thread block: few enough that a run keeps many thread blocks
// busy, so many that the preparation hardly counts.
constexpr int kSteps = 4;

template <int kHeadDim>
constexpr int kBlocksPerThreadBlock = kSteps* planes::DecodeStep<kHeadDim>::kBlocks;

// Of head_dim 256 there is no `packkv` (Backend::Supports).
template <int kHeadDim>
inline constexpr bool kHasPackKv = kHeadDim <= 128;

// A run has one codec.
template <int kHeadDim>
union DecodeShared {
  typename planes::DecodeStep<kHeadDim>::Shared planes;
  packkv::DecodeShared<kHasPackKv<kHeadDim> ? kHeadDim : 64, kDecodeThreads / 32> packkv;
};

// blockIdx: share of the run's blocks, K or V of a head, run.
template <int kHeadDim, DType kTo>
__global__ void __launch_bounds__(kDecodeThreads, 3) DecodeKernel(const DecodeBatch batch) {
  __shared__ DecodeShared<kHeadDim> shared;
  const DecodeRun& job = batch.runs[blockIdx.z];
  const int tensor = static_cast<int>(blockIdx.y);
  const int end = job.run.first + job.run.count;
  const int first_block =
      job.run.first / kBlockTokens + static_cast<int>(blockIdx.x) * kBlocksPerThreadBlock<kHeadDim>;
  int block_end = (end + kBlockTokens - 1) / kBlockTokens;
  if (block_end > first_block + kBlocksPerThreadBlock<kHeadDim>)
    block_end = first_block + kBlocksPerThreadBlock<kHeadDim>;
  if (first_block >= block_end) return;
  if (job.run.form == TokenRun::Form::kPlanes) {
    if (tensor % 2 == 0) {
      planes::DecodeRunBlocks<kHeadDim, kTo, true>(batch, job, tensor / 2, first_block, block_end,
                                                   shared.planes);
    } else {
      planes::DecodeRunBlocks<kHeadDim, kTo, false>(batch, job, tensor / 2, first_block, block_end,
                                                    shared.planes);
    }
    return;
  }
  if (job.run.form == TokenRun::Form::kPackKv) {
    if constexpr (kHasPackKv<kHeadDim>) {
      packkv::DecodeRunBlocks<kHeadDim, kDecodeThreads / 32, kTo>(batch, job, tensor, first_block,
                                                                  block_end, shared.packkv);
    }
    return;
  }
  const int first_token = first_block * kBlockTokens;
  const int token_end = block_end * kBlockTokens;
  const int from = first_token > job.run.first ? first_token : job.run.first;
  const int to = token_end < end ? token_end : end;
  switch (batch.dtype) {
    case DType::kBf16:
      return raw::DecodeRunTokens<kDecodeThreads, kHeadDim, DType::kBf16, kTo>(batch, job, tensor,
                                                                               from, to);
    case DType::kFp16:
      return raw::DecodeRunTokens<kDecodeThreads, kHeadDim, DType::kFp16, kTo>(batch, job, tensor,
                                                                               from, to);
    case DType::kFp32:
      return raw::DecodeRunTokens<kDecodeThreads, kHeadDim, DType::kFp32, kTo>(batch, job, tensor,
                                                                               from, to);
  }
}

template <int kHeadDim, DType kTo>
cudaError_t QueueKernel(const DecodeBatch& batch, cudaStream_t stream) {
  // A run that does not begin with a block touches one block more.
  int blocks = (batch.run_tokens_max + kBlockTokens - 2) / kBlockTokens + 1;
  if (blocks > kSegmentTokensMax / kBlockTokens) blocks = kSegmentTokensMax / kBlockTokens;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>((blocks + kBlocksPerThreadBlock<kHeadDim> - 1) /
                                 kBlocksPerThreadBlock<kHeadDim>),
           static_cast<unsigned>(2 * batch.kv_heads), static_cast<unsigned>(batch.run_count));
  config.blockDim = dim3(kDecodeThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, DecodeKernel<kHeadDim, kTo>, batch);
}

template <DType kTo>
cudaError_t QueueHeadDim(const DecodeBatch& batch, cudaStream_t stream) {
  switch (batch.head_dim) {
    case 64:
      return QueueKernel<64, kTo>(batch, stream);
    case 128:
      return QueueKernel<128, kTo>(batch, stream);
    case 256:
      return QueueKernel<256, kTo>(batch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t DecodeRuns(const DecodeBatch& batch, cudaStream_t stream) {
  if (batch.run_count == 0 || batch.run_tokens_max == 0) return cudaSuccess;
  switch (batch.to) {
    case DType::kBf16:
      return QueueHeadDim<DType::kBf16>(batch, stream);
    case DType::kFp16:
      return QueueHeadDim<DType::kFp16>(batch, stream);
    case DType::kFp32:
      return QueueHeadDim<DType::kFp32>(batch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kvdepot
