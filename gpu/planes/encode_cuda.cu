// One cluster of thread blocks encodes K or V of one head of one segment. The values are read from
// device memory once and stay in shared memory, 64 KiB a thread block (128 KiB for fp32).
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

// What the barriers of this thread block wait for.
template <class T>
__device__ void MakeBarriers(typename T::Shared& shared, const TilePart& part, bool variance) {
  uint32_t own_slices = 0;
  while (part.SliceOf(own_slices) < T::kSlices) ++own_slices;
  const uint32_t sums = own_slices * part.block_count * kSliceChannels * sizeof(float);
  constexpr uint32_t kPerChannel = T::kHeadDim * sizeof(float);
  constexpr uint32_t kPerSlice = T::kSlices * sizeof(uint32_t);
  for (uint64_t& barrier : shared.sums_received) cluster::MakeBarrier(&barrier, sums);
  cluster::MakeBarrier(&shared.results_received[kSumOfValues], kPerChannel);
  cluster::MakeBarrier(&shared.results_received[kSumOfSquares],
                       variance ? kPerChannel + kPerSlice : 2 * kPerChannel);
  cluster::MakeBarrier(&shared.results_received[kSumOfScaledSquares], 2 * kPerChannel + kPerSlice);
  cluster::MakeBarrier(&shared.largest_received,
                       part.ranks * static_cast<uint32_t>(sizeof(uint32_t)));
}

// Starts the copies of this thread block's blocks into shared memory; when it returns, thread
// blocks may write to each other and a warp finds the block that it sums.
template <class T>
__device__ void LoadBlocks(typename T::Shared& shared, const TilePart& part, const SegmentJob& job,
                           int tensor_index, bool variance) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < part.blocks; ++i) ptx::BarrierInit(&shared.loaded[i]);
    MakeBarriers<T>(shared, part, variance);
    cluster::PublishBarriers();
    const uint64_t policy = ptx::EvictFirst();
    const std::byte* const* blocks = job.blocks + part.rank * T::kBlocks;
    for (int i = 0; i < part.blocks; ++i) {
      ptx::BulkLoad(shared.values[i],
                    blocks[i] + static_cast<size_t>(tensor_index) * T::kBlockBytes, T::kBlockBytes,
                    &shared.loaded[i], policy);
    }
    shared.largest_rounded = 0;
  }
  __syncthreads();
  cluster::ArriveAtStart();
  cluster::WaitForStart();
  const int block = static_cast<int>(threadIdx.x / 32) / T::kWarpsPerBlock;
  if (block < part.blocks) ptx::BarrierWait(&shared.loaded[block], 0);
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

// Variances instead of a segment: 0 for all of a tensor's channels if one is out of range. Rank 0
// collects them.
template <class T>
__device__ void StoreVariance(typename T::Shared& shared, const TilePart& part, float* variance) {
  const bool centre_in_range = FindCentres<T>(shared, part);
  SendSquares<T>(shared, part);
  uint64_t* barrier = &shared.results_received[kSumOfSquares];
  FinishOwnChannels<T>(shared, part, kSumOfSquares, [&](int channel, float sum) {
    const bool in_range = centre_in_range && IsFiniteFloat(sum);
    const uint32_t out = __ballot_sync(kAllLanes, !in_range);
    cluster::Send(&shared.deviation_or_step[channel], sum / part.token_count, barrier, 0);
    if (channel % kSliceChannels == 0)
      cluster::Send(&shared.stored_of_slice[channel / kSliceChannels], out, barrier, 0);
  });
  if (part.rank != 0) return;
  cluster::WaitFor(barrier);
  uint32_t any_out = 0;
  for (const uint32_t out : shared.stored_of_slice) any_out |= out;
  const int channel = static_cast<int>(threadIdx.x);
  if (channel < T::kHeadDim)
    variance[channel] = any_out != 0 ? 0.0f : shared.deviation_or_step[channel];
}

template <class T>
__device__ void EncodeTensor(typename T::Shared& shared, const TilePart& part, const Launch& launch,
                             const TensorTarget& target) {
  for (int place = static_cast<int>(threadIdx.x); place < T::kHeadDim; place += kEncodeThreads) {
    const uint8_t channel = target.order()[place];
    shared.order[place] = channel;
    shared.place_of[channel] = static_cast<uint8_t>(place);
  }
  bool in_range = FindCentres<T>(shared, part);
  in_range = FindDeviations<T>(shared, part) && in_range;
  in_range = FindTokenScales<T>(shared, part) && in_range;
  SettleTokenScales<T>(shared, part, [&](int token, uint8_t code) {
    const size_t block = part.rank * T::kBlocks + static_cast<size_t>(token / kBlockTokens);
    std::byte* record = target.records + block * target.head->record_bytes;
    const int slot = token % kBlockTokens;
    record[target.is_key ? KTokenScaleIndex(slot) : VTokenScaleIndex(slot)] =
        static_cast<std::byte>(code);
  });
  SendScaledSquares<T>(shared, part);
  in_range = FindSteps<T>(shared, part, target.widths(),
                          [&](int place, uint16_t stored, uint16_t centre) {
                            uint16_t* table = reinterpret_cast<uint16_t*>(target.table);
                            const int index = target.is_key ? KTableIndex(T::kHeadDim, place)
                                                            : VTableIndex(T::kHeadDim, place);
                            table[index] = stored;
                            table[index + CentreDistance(T::kHeadDim)] = centre;
                          }) &&
             in_range;
  if (!in_range) launch.out_of_range[blockIdx.y] = 1;
  PackBlocks<T>(shared, part, target);
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

  LoadBlocks<T>(shared, part, job, tensor, kVariance);
  if constexpr (kVariance) {
    const size_t tensor_of_batch =
        static_cast<size_t>(blockIdx.y) * 2 * static_cast<size_t>(launch.kv_heads) +
        static_cast<size_t>(tensor);
    StoreVariance<T>(shared, part, launch.variance + tensor_of_batch * T::kHeadDim);
  } else {
    EncodeTensor<T>(shared, part, launch, TargetOf<T>(job, launch.kv_heads, tensor));
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
  // Two at least: blocks without work end at once, and compute-sanitizer takes a cluster of one for
  // none.
  unsigned ranks = 2;
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
