#include <algorithm>

#include "gpu/attend_kernel.cuh"
#include "gpu/attend_launch.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

constexpr size_t kStateBytesMax = sizeof(float) * RowState<256>::Floats(8);
constexpr size_t kPartsBytes = 2 * kLaunchBlocksMax * 8 * sizeof(uint64_t) * Parts<256>::kRowWords;
constexpr size_t kSpillsBytes = kLaunchBlocksMax * kWarpsMax * kStateBytesMax;

template <int kHeadDim, int kTiles>
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

  const auto kernel = AttendKernel<kHeadDim, kTiles>;
  int device = 0;
  int shared_max = 0;
  cudaFuncAttributes function;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&shared_max, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&function, kernel);
  if (error != cudaSuccess) return error;
  const uint32_t row_bytes = PlanRows::Bytes(p.row_count);
  const uint32_t available = static_cast<uint32_t>(shared_max) -
                             static_cast<uint32_t>(function.sharedSizeBytes) - row_bytes;
  // As many warps as there is room for, and then larger rings.
  using Layout = WarpMemoryLayout<kHeadDim, kTiles>;
  const uint32_t piece_bytes =
      std::max(batch.record_bytes_max, raw::RingPieceBytes(kHeadDim, batch.dtype));
  const uint32_t warps =
      std::min<uint32_t>(kWarpsMax, available / Layout(kRingSlotsMin * piece_bytes).bytes());
  p.ring_bytes =
      std::min((available / warps - Layout(0).bytes()) / 16 * 16, kRingSlotsMax * piece_bytes);
  p.rows_per_thread = (p.row_count + 32 * warps - 1) / (32 * warps);
  const uint32_t warp_bytes = Layout(p.ring_bytes).bytes();
  const uint32_t shared_bytes = row_bytes + warps * warp_bytes;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const unsigned blocks = std::min(static_cast<unsigned>(multiprocessors), kLaunchBlocksMax);
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

int AttendRowsPerTile(const LayerShape& shape, int query_tokens) {
  return shape.queries_per_kv_head() * query_tokens > 4 ? 8 : 4;
}

size_t AttendWorkspaceBytes() { return kPartsBytes + kSpillsBytes; }

cudaError_t LaunchAttend(const AttendLaunch& batch, int multiprocessors, cudaStream_t stream) {
  const bool narrow = batch.rows_per_tile == 4;
  switch (batch.shape.head_dim) {
    case 64:
      return narrow ? Launch<64, 1>(batch, multiprocessors, stream)
                    : Launch<64, 2>(batch, multiprocessors, stream);
    case 128:
      return narrow ? Launch<128, 1>(batch, multiprocessors, stream)
                    : Launch<128, 2>(batch, multiprocessors, stream);
    case 256:
      return narrow ? Launch<256, 1>(batch, multiprocessors, stream)
                    : Launch<256, 2>(batch, multiprocessors, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace kvdepot
