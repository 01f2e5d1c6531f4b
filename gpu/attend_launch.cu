#include <algorithm>

#include "gpu/attend_kernel.cuh"
#include "gpu/attend_launch.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// A block a multiprocessor. Other head_dims and fewer rows take less.
constexpr int kRowsMax = 8;
constexpr size_t kPartsBytes = size_t{2} * kLaunchMultiprocessorsMax * kRowsMax * sizeof(uint64_t) *
                               Parts<kHeadDimMax>::kRowWords;
constexpr size_t kSpillsBytes = size_t{kLaunchMultiprocessorsMax} * kWarpsMax * sizeof(float) *
                                RowState<kHeadDimMax>::Floats(kRowsMax);

// Shared memory that a block may have.
cudaError_t SharedMemoryMax(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess
             ? cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)
             : error;
}

template <int kHeadDim, int kTiles, Codec kCodec>
cudaError_t Launch(const AttendLaunch& batch, int multiprocessors, cudaStream_t stream) {
  AttendParameters p;
  p.cells = batch.cells;
  p.block_cost_bytes = batch.block_cost_bytes;
  p.first_row = batch.first_row;
  p.row_count = batch.row_count;
  p.tiles = Divider::By(batch.tiles);
  p.kv_heads = Divider::By(static_cast<uint32_t>(batch.shape.kv_heads));
  p.ratio = Divider::By(static_cast<uint32_t>(batch.shape.queries_per_kv_head()));
  p.query_heads = static_cast<uint32_t>(batch.shape.query_heads);
  p.sliding_window = static_cast<uint32_t>(batch.shape.sliding_window);
  p.soft_cap = batch.shape.soft_cap;
  p.dtype = batch.dtype;
  p.header_bytes = static_cast<uint32_t>(SegmentHeaderBytes(batch.shape.kv_heads));
  p.parts = reinterpret_cast<uint64_t*>(batch.workspace);
  p.spills = reinterpret_cast<float*>(batch.workspace + kPartsBytes);

  const auto kernel = AttendKernel<kHeadDim, kTiles, kCodec>;
  int shared_max = 0;
  cudaFuncAttributes function;
  cudaError_t error = SharedMemoryMax(&shared_max);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&function, kernel);
  if (error != cudaSuccess) return error;
  const uint32_t row_bytes = PlanRows::Bytes(p.row_count);
  const uint32_t available = static_cast<uint32_t>(shared_max) -
                             static_cast<uint32_t>(function.sharedSizeBytes) - row_bytes;
  // As many warps as there is room for, and then larger rings.
  using Layout = WarpMemoryLayout<kHeadDim, kTiles, kCodec>;
  const uint32_t exact_piece_bytes = raw::RingPieceBytes(kHeadDim, batch.dtype);
  const uint32_t sealed_piece_bytes =
      kCodec == Codec::kPackKv ? packkv::SlotBytes(kHeadDim) : batch.record_bytes_max;
  const uint32_t piece_bytes = std::max(sealed_piece_bytes, exact_piece_bytes);
  // `packkv` sessions have few exact tokens.
  const uint32_t ring_bytes_min =
      kCodec == Codec::kPackKv
          ? std::max(packkv::kPieceSlots * sealed_piece_bytes, exact_piece_bytes)
          : kRingSlotsMin * piece_bytes;
  const uint32_t warps = std::min<uint32_t>(kWarpsMax, available / Layout(ring_bytes_min).bytes());
  p.ring_bytes =
      std::min((available / warps - Layout(0).bytes()) / 16 * 16, kRingSlotsMax * piece_bytes);
  p.rows_per_thread = (p.row_count + 32 * warps - 1) / (32 * warps);
  const uint32_t warp_bytes = Layout(p.ring_bytes).bytes();
  const uint32_t shared_bytes = row_bytes + warps * warp_bytes;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const unsigned blocks =
      std::min(static_cast<unsigned>(multiprocessors), kLaunchMultiprocessorsMax);
  // Cooperative, as blocks wait for each other's parts of rows.
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32 * warps);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = batch.follows_cells ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace

int AttendRowsPerTile(const LayerShape& shape, int query_tokens, Codec codec) {
  if (codec == Codec::kPackKv) return packkv::kProductRows;
  return shape.queries_per_kv_head() * query_tokens > 4 ? 8 : 4;
}

size_t AttendWorkspaceBytes() { return kPartsBytes + kSpillsBytes; }

cudaError_t LaunchAttend(const AttendLaunch& batch, int multiprocessors, cudaStream_t stream) {
  if (batch.codec == Codec::kPackKv) {
    switch (batch.shape.head_dim) {
      case 64:
        return Launch<64, 1, Codec::kPackKv>(batch, multiprocessors, stream);
      case 128:
        return Launch<128, 1, Codec::kPackKv>(batch, multiprocessors, stream);
      default:
        return cudaErrorInvalidValue;
    }
  }
  const bool narrow = batch.rows_per_tile == 4;
  switch (batch.shape.head_dim) {
    case 64:
      return narrow ? Launch<64, 1, Codec::kPlanes>(batch, multiprocessors, stream)
                    : Launch<64, 2, Codec::kPlanes>(batch, multiprocessors, stream);
    case 128:
      return narrow ? Launch<128, 1, Codec::kPlanes>(batch, multiprocessors, stream)
                    : Launch<128, 2, Codec::kPlanes>(batch, multiprocessors, stream);
    case 256:
      return narrow ? Launch<256, 1, Codec::kPlanes>(batch, multiprocessors, stream)
                    : Launch<256, 2, Codec::kPlanes>(batch, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace kvdepot
