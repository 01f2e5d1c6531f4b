// One cluster of thread blocks encodes K or V of one head of one segment. The values are read from
// device memory once and stay in shared memory, 64 KiB a thread block (128 KiB for fp32); sums that
// span the segment go through the cluster.
#include "gpu/checksum_cuda.h"
#include "gpu/cluster.cuh"
#include "gpu/cuda_ptx.cuh"
#include "gpu/planes/encode_cuda.h"
#include "gpu/planes/encode_pack.cuh"
#include "gpu/planes/encode_statistics.cuh"
#include "gpu/planes/encode_tile.cuh"
#include "gpu/segment_header.h"
#include "gpu/segment_header_cuda.h"

namespace kvdepot::planes {
namespace {

// What all tensors of a launch share.
struct Launch {
  const SegmentJob* jobs;
  int kv_heads;
  uint32_t* out_of_range;  // [job]; null: variances are wanted
  float* variance;         // [job][kv_head][K, V][channel]
};

// K or V of one head of one job, and where its bytes go.
struct TensorTarget {
  bool is_key;
  int index;  // 2 head + (V)
  const DeviceHead* head;
  std::byte* table;
  std::byte* records;

  __device__ uint32_t widths() const { return is_key ? head->k_widths : head->v_widths; }
  __device__ const uint8_t* order() const { return is_key ? head->k_order : head->v_order; }
};

template <class T>
__device__ TensorTarget TargetOf(const SegmentJob& job, int kv_heads, int index) {
  TensorTarget target{};
  target.is_key = index % 2 == 0;
  target.index = index;
  if (job.heads == nullptr) return target;
  target.head = job.heads + index / 2;
  std::byte* part = job.segment + PlanesPartOffset(SegmentHeaderBytes(kv_heads), T::kHeadDim,
                                                   index / 2, target.head->record_bytes_before,
                                                   static_cast<int>(job.block_count));
  target.table = part + (target.is_key ? 0 : TableBytes(T::kHeadDim));
  target.records = part + 2 * TableBytes(T::kHeadDim);
  return target;
}

// Starts the copies of this thread block's blocks into shared memory.
template <class T>
__device__ void LoadBlocks(typename T::Shared& shared, const TilePart& part, const SegmentJob& job,
                           int tensor_index) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < part.blocks; ++i) ptx::BarrierInit(&shared.loaded[i]);
    ptx::FenceBarrierInit();
    const uint64_t policy = ptx::EvictFirst();
    const std::byte* const* blocks = job.blocks + part.rank * T::kBlocks;
    for (int i = 0; i < part.blocks; ++i) {
      ptx::BulkLoad(shared.values[i],
                    blocks[i] + static_cast<size_t>(tensor_index) * T::kBlockBytes, T::kBlockBytes,
                    &shared.loaded[i], policy);
    }
    shared.largest_rounded = 0;
    shared.largest_stored = 0;
  }
  // The barriers are seen by all, in all thread blocks, before anybody waits for them or reads
  // another's memory.
  __syncthreads();
  cluster::Arrive();
}

// A warp waits for the block that it sums; what it reads of others comes after a sync of all warps.
template <class T>
__device__ void WaitForBlock(typename T::Shared& shared, const TilePart& part) {
  const int block = static_cast<int>(threadIdx.x / 32) / T::kWarpsPerBlock;
  if (block < part.blocks) ptx::BarrierWait(&shared.loaded[block], 0);
  cluster::Wait();
}

// Step 6, the table and the reciprocals of steps by place. False if this thread's channel, or the
// tensor as a whole, leaves the range of the format.
template <class T>
__device__ bool StoreTable(typename T::Shared& shared, const TilePart& part,
                           const TensorTarget& target) {
  bool in_range = true;
  bool spread = false;
  const int place = static_cast<int>(threadIdx.x);
  if (place < T::kHeadDim) {
    const int channel = shared.order[place];
    const int width = GroupWidth(target.widths(), place / kGroupChannels);
    const float sum = SumOfChannel<T>(shared.block_sums[2], part, channel);
    const float deviation = sqrtf(sum / part.token_count);
    in_range = IsFiniteFloat(sum) && IsFiniteFloat(deviation);
    spread = deviation > 0.0f;
    uint16_t stored = 0;
    if (width > 0) {
      stored = FloatToFp16(ClipEighth(width) * deviation);
      in_range = in_range && IsFiniteFp16(stored);
      atomicMax(&shared.largest_stored, static_cast<uint32_t>(stored));
      if (stored < kStoredScaleMinFp16) stored = kStoredScaleMinFp16;
      const Reciprocal step = ReciprocalOf(Fp16ToFloat(stored) * StepFactor(width));
      shared.deviation_or_step[place] = step.high;
      shared.inverse_or_rest[place] = step.low;
    }
    if (part.rank == 0) {
      uint16_t* table = reinterpret_cast<uint16_t*>(target.table);
      const int index =
          target.is_key ? KTableIndex(T::kHeadDim, place) : VTableIndex(T::kHeadDim, place);
      table[index] = stored;
      table[index + CentreDistance(T::kHeadDim)] = FloatToFp16(shared.centre[channel]);
    }
  }
  const bool any_spread = __syncthreads_or(spread) != 0;
  // Stored scales are not negative: their bits order as they do.
  const uint16_t largest = static_cast<uint16_t>(shared.largest_stored);
  return in_range && (!any_spread || Fp16ToFloat(largest) >= kStoredScaleNormalMin);
}

template <class T>
__device__ void PackBlocks(const typename T::Shared& shared, const TilePart& part,
                           const TensorTarget& target) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int block = warp / T::kWarpsPerBlock;
  if (block >= part.blocks) return;
  const int index = 32 * (warp % T::kWarpsPerBlock) + static_cast<int>(threadIdx.x % 32);
  const size_t block_of_segment = part.rank * T::kBlocks + static_cast<size_t>(block);
  std::byte* planes =
      target.records + block_of_segment * target.head->record_bytes + kTokenScaleBytes;
  if (target.is_key) {
    PackKeyBlock<T>(shared, block, index, target.widths(), planes);
  } else {
    constexpr int kGroups = T::kHeadDim / kGroupChannels;
    planes += GroupBytes(WidthsBefore(target.head->k_widths, kGroups));
    PackValueBlock<T>(shared, block, index, target.widths(), planes);
  }
}

// Variances instead of a segment: false for all of a tensor's channels if one is out of range.
template <class T>
__device__ void StoreVariance(typename T::Shared& shared, const TilePart& part, bool in_range,
                              float* variance) {
  SumSquares<T>(shared, part);
  const int channel = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  if (channel < T::kHeadDim) {
    sum = SumOfChannel<T>(shared.block_sums[1], part, channel);
    in_range = in_range && IsFiniteFloat(sum);
  }
  const bool any_out = __syncthreads_or(!in_range) != 0;
  if (channel < T::kHeadDim && part.rank == 0)
    variance[channel] = any_out ? 0.0f : sum / part.token_count;
  SyncCluster();  // Nobody ends while others read its sums.
}

template <class T>
__device__ void EncodeTensor(typename T::Shared& shared, const TilePart& part,
                             const SegmentJob& job, const Launch& launch,
                             const TensorTarget& target) {
  for (int place = static_cast<int>(threadIdx.x); place < T::kHeadDim; place += kEncodeThreads)
    shared.order[place] = target.order()[place];
  bool in_range = FindCentres<T>(shared, part);
  in_range = FindDeviations<T>(shared, part) && in_range;
  in_range = FindTokenScales<T>(shared, part) && in_range;
  const auto write_code = [&](int token, uint8_t code) {
    const size_t block = part.rank * T::kBlocks + static_cast<size_t>(token / kBlockTokens);
    std::byte* record = target.records + block * target.head->record_bytes;
    const int slot = token % kBlockTokens;
    record[target.is_key ? KTokenScaleIndex(slot) : VTokenScaleIndex(slot)] =
        static_cast<std::byte>(code);
  };
  SumScaledSquares<T>(shared, part, write_code);
  in_range = StoreTable<T>(shared, part, target) && in_range;
  cluster::Arrive();
  if (!in_range) launch.out_of_range[blockIdx.y] = 1;
  PackBlocks<T>(shared, part, target);
  cluster::Wait();  // Nobody ends while others read its sums.
}

template <class T, bool kVariance, int kBlocksPerMultiprocessor>
__global__ void __launch_bounds__(kEncodeThreads, kBlocksPerMultiprocessor)
    EncodeKernel(const Launch launch) {
  typename T::Shared& shared = *reinterpret_cast<typename T::Shared*>(cluster::DynamicShared());
  const SegmentJob& job = launch.jobs[blockIdx.y];
  TilePart part;
  part.block_count = job.block_count;
  part.rank = cluster::Rank();
  part.ranks = (part.block_count + T::kBlocks - 1) / T::kBlocks;
  const int left = static_cast<int>(part.block_count) - static_cast<int>(part.rank) * T::kBlocks;
  if (left <= 0) return;
  part.blocks = left < T::kBlocks ? left : T::kBlocks;
  part.token_count = static_cast<float>(part.block_count * kBlockTokens);
  const int tensor = static_cast<int>(blockIdx.x / cluster::Size());

  LoadBlocks<T>(shared, part, job, tensor);
  WaitForBlock<T>(shared, part);
  if constexpr (kVariance) {
    const bool in_range = FindCentres<T>(shared, part);
    const size_t tensor_of_batch =
        static_cast<size_t>(blockIdx.y) * 2 * static_cast<size_t>(launch.kv_heads) +
        static_cast<size_t>(tensor);
    StoreVariance<T>(shared, part, in_range, launch.variance + tensor_of_batch * T::kHeadDim);
  } else {
    EncodeTensor<T>(shared, part, job, launch, TargetOf<T>(job, launch.kv_heads, tensor));
  }
}

template <class T, bool kVariance>
cudaError_t QueueTile(const SegmentBatch& batch, const Launch& launch, cudaStream_t stream) {
  // As many thread blocks as fit into a multiprocessor's shared memory.
  constexpr int kBlocksPerMultiprocessor = sizeof(typename T::Shared) <= 75 * 1024 ? 3 : 1;
  const auto kernel = EncodeKernel<T, kVariance, kBlocksPerMultiprocessor>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(typename T::Shared)));
  if (error != cudaSuccess) return error;
  unsigned ranks = 1;
  while (static_cast<int>(ranks) * T::kBlocks < batch.block_count_max) ranks *= 2;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = ranks;
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ranks * 2 * static_cast<unsigned>(batch.kv_heads),
                        static_cast<unsigned>(batch.job_count));
  config.blockDim = dim3(kEncodeThreads);
  config.dynamicSmemBytes = sizeof(typename T::Shared);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

template <DType kDType, bool kVariance>
cudaError_t QueueDType(const SegmentBatch& batch, const Launch& launch, cudaStream_t stream) {
  switch (batch.head_dim) {
    case 64:
      return QueueTile<Tile<kDType, 64>, kVariance>(batch, launch, stream);
    case 128:
      return QueueTile<Tile<kDType, 128>, kVariance>(batch, launch, stream);
    case 256:
      return QueueTile<Tile<kDType, 256>, kVariance>(batch, launch, stream);
  }
  return cudaErrorInvalidValue;
}

template <bool kVariance>
cudaError_t Queue(const SegmentBatch& batch, const Launch& launch, cudaStream_t stream) {
  switch (batch.dtype) {
    case DType::kBf16:
      return QueueDType<DType::kBf16, kVariance>(batch, launch, stream);
    case DType::kFp16:
      return QueueDType<DType::kFp16, kVariance>(batch, launch, stream);
    case DType::kFp32:
      return QueueDType<DType::kFp32, kVariance>(batch, launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t EncodeSegments(const SegmentBatch& batch, uint32_t* out_of_range, std::byte* workspace,
                           cudaStream_t stream) {
  if (batch.job_count == 0) return cudaSuccess;
  cudaError_t error = WriteHeaders(batch, Codec::kPlanes, out_of_range, stream);
  if (error != cudaSuccess) return error;
  error = Queue</*kVariance=*/false>(batch, {batch.jobs, batch.kv_heads, out_of_range, nullptr},
                                     stream);
  if (error != cudaSuccess) return error;
  return WriteChecksums(batch.jobs, batch.job_count, batch.size_bytes_max, workspace, stream);
}

cudaError_t ChannelVariances(const SegmentBatch& batch, float* variance, cudaStream_t stream) {
  if (batch.job_count == 0) return cudaSuccess;
  return Queue</*kVariance=*/true>(batch, {batch.jobs, batch.kv_heads, nullptr, variance}, stream);
}

}  // namespace kvdepot::planes
