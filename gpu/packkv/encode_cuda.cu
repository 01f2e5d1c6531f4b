// A chain of four kernels: codes and token tables (encode_quantize.cuh); how long each round's
// parts are; where each round begins (encode_layout.cuh); the rounds' bytes (encode_rounds.cuh).
#include "gpu/packkv/encode_cuda.h"
#include "gpu/packkv/encode_launch.cuh"
#include "gpu/packkv/encode_layout.cuh"
#include "gpu/packkv/encode_quantize.cuh"
#include "gpu/packkv/encode_rounds.cuh"
#include "gpu/packkv/quantize.h"

namespace kvdepot::packkv {
namespace {

size_t BlocksOf(const SegmentBatch& batch) {
  return static_cast<size_t>(batch.job_count) * static_cast<size_t>(batch.block_count_max);
}

// Codes of a block.
size_t CodeBytes(const SegmentBatch& batch) {
  return 2 * static_cast<size_t>(kBlockTokens) * static_cast<size_t>(batch.kv_heads) *
         static_cast<size_t>(batch.head_dim);
}

EncodeLaunch LaunchOf(const SegmentBatch& batch, const Options& options, std::byte* workspace) {
  EncodeLaunch launch{};
  launch.jobs = batch.jobs;
  launch.kv_heads = batch.kv_heads;
  launch.head_dim = batch.head_dim;
  launch.block_count_max = batch.block_count_max;
  launch.relative_scale[0] = options.k_relative_scale;
  launch.relative_scale[1] = options.v_relative_scale;
  launch.code_bits_max[0] = CodeBitsMax(options.k_relative_scale);
  launch.code_bits_max[1] = CodeBitsMax(options.v_relative_scale);
  launch.pack_tokens = options.pack_tokens;
  launch.repacking = options.repacking;
  const size_t blocks = BlocksOf(batch);
  launch.codes = reinterpret_cast<uint8_t*>(workspace);
  workspace += blocks * CodeBytes(batch);
  launch.summaries = reinterpret_cast<BlockSummary*>(workspace);
  workspace += blocks * sizeof(BlockSummary);
  launch.part_units = reinterpret_cast<uint16_t*>(workspace);
  return launch;
}

template <class Kernel>
cudaError_t QueueKernel(Kernel kernel, const EncodeLaunch& launch, dim3 grid, int threads,
                        cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

cudaError_t QueueQuantize(const SegmentBatch& batch, const EncodeLaunch& launch,
                          cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(batch.block_count_max),
                  static_cast<unsigned>(batch.job_count));
  switch (batch.dtype) {
    case DType::kBf16:
      return QueueKernel(QuantizeKernel<DType::kBf16>, launch, grid, kQuantizeThreads, stream);
    case DType::kFp16:
      return QueueKernel(QuantizeKernel<DType::kFp16>, launch, grid, kQuantizeThreads, stream);
    case DType::kFp32:
      return QueueKernel(QuantizeKernel<DType::kFp32>, launch, grid, kQuantizeThreads, stream);
  }
  return cudaErrorInvalidValue;
}

template <class R>
cudaError_t QueueRounds(const SegmentBatch& batch, const EncodeLaunch& launch,
                        cudaStream_t stream) {
  const unsigned jobs = static_cast<unsigned>(batch.job_count);
  const dim3 grid(static_cast<unsigned>(batch.block_count_max * launch.tiles()), jobs);
  cudaError_t error = QueueKernel(MeasureRoundsKernel<R>, launch, grid, kRoundThreads, stream);
  if (error != cudaSuccess) return error;
  error = QueueKernel(LayoutKernel, launch, dim3(jobs), kLayoutThreads, stream);
  if (error != cudaSuccess) return error;
  return QueueKernel(WriteRoundsKernel<R>, launch, grid, kRoundThreads, stream);
}

template <int kPackTokens>
cudaError_t QueueRoundsOf(const SegmentBatch& batch, const EncodeLaunch& launch,
                          cudaStream_t stream) {
  switch (batch.head_dim) {
    case 64:
      return QueueRounds<PackedRound<kPackTokens, 64>>(batch, launch, stream);
    case 128:
      return QueueRounds<PackedRound<kPackTokens, 128>>(batch, launch, stream);
    case 256:
      return QueueRounds<PackedRound<kPackTokens, 256>>(batch, launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool EncodesOnCuda(const Options& options) {
  return options.repacking != Repacking::kGreedy && !options.normalize;
}

size_t EncodeWorkspaceBytes(const SegmentBatch& batch, const Options& options) {
  const size_t rounds = 2 * static_cast<size_t>(batch.kv_heads) *
                        static_cast<size_t>(kBlockTokens / options.pack_tokens);
  return BlocksOf(batch) * (CodeBytes(batch) + sizeof(BlockSummary) + rounds * sizeof(uint16_t));
}

cudaError_t EncodeBodies(const SegmentBatch& batch, const Options& options, size_t header_bytes,
                         uint32_t* out_of_range, uint64_t* body_bytes, std::byte* workspace,
                         cudaStream_t stream) {
  if (!EncodesOnCuda(options)) return cudaErrorInvalidValue;
  if (batch.job_count == 0) return cudaSuccess;
  EncodeLaunch launch = LaunchOf(batch, options, workspace);
  launch.header_bytes = header_bytes;
  launch.out_of_range = out_of_range;
  launch.body_bytes = body_bytes;
  const cudaError_t error = QueueQuantize(batch, launch, stream);
  if (error != cudaSuccess) return error;
  switch (options.pack_tokens) {
    case 4:
      return QueueRoundsOf<4>(batch, launch, stream);
    case 8:
      return QueueRoundsOf<8>(batch, launch, stream);
    case 16:
      return QueueRoundsOf<16>(batch, launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace kvdepot::packkv
