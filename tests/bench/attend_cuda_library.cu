// Batches of sessions in device memory for tests/bench/attend.py, which loads this through ctypes
// and launches attends into its own CUDA graphs.
//
// Time does not depend on values, so codes are random bits; tables and token scales are such that
// logits and outputs stay finite. A failure of CUDA ends the process.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "gpu/attend_launch.h"
#include "gpu/backend.h"
#include "gpu/device_head.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "attend_cuda_library: %s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

__device__ uint32_t Mixed(uint32_t x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

// Uniform between -1.6 and 1.6.
__device__ float Uniform(uint32_t seed) {
  return (static_cast<int>(Mixed(seed) & 0xFFFFu) - 32768) / 20000.0f;
}

__global__ void FillBits(uint32_t* words, size_t count, uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    words[i] = Mixed(static_cast<uint32_t>(i) * 2654435761u + seed);
}

__global__ void FillBf16(uint16_t* values, size_t count, uint32_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    values[i] =
        static_cast<uint16_t>(__float_as_uint(Uniform(static_cast<uint32_t>(i) + seed)) >> 16);
}

// One block a run and KV head: tables and token scales over the random bits.
__global__ void FillTables(const PlanesRun* runs, const DeviceHead* heads, uint32_t header_bytes,
                           int head_dim) {
  const PlanesRun run = runs[blockIdx.x];
  const DeviceHead& head = heads[blockIdx.y];
  std::byte* const part = const_cast<std::byte*>(run.segment) +
                          PlanesPartOffset(header_bytes, head_dim, static_cast<int>(blockIdx.y),
                                           head.record_bytes_before, run.blocks);
  __half* const tables = reinterpret_cast<__half*>(part);
  for (int i = threadIdx.x; i < 4 * head_dim; i += blockDim.x) {
    const float value = Uniform(i + blockIdx.x * 977u + blockIdx.y * 13u);
    const bool is_centre = i % (head_dim / 4) >= head_dim / 8;
    tables[i] = __float2half(is_centre ? value / 4 : 0.02f + fabsf(value) / 30);
  }
  for (int block = 0; block < run.blocks; ++block) {
    uint8_t* const codes = reinterpret_cast<uint8_t*>(part + 2 * planes::TableBytes(head_dim)) +
                           static_cast<size_t>(block) * head.record_bytes;
    for (int i = threadIdx.x; i < planes::kTokenScaleBytes; i += blockDim.x)
      codes[i] = static_cast<uint8_t>(0xE8u + (codes[i] & 15u));
  }
}

// What lies in device memory until the batch goes.
class Memory {
 public:
  ~Memory() {
    for (void* piece : pieces_) cudaFree(piece);
  }
  std::byte* Allocate(size_t bytes) {
    void* piece = nullptr;
    Check(cudaMalloc(&piece, bytes), "allocating");
    pieces_.push_back(piece);
    return static_cast<std::byte*>(piece);
  }
  template <class T>
  T* Upload(const std::vector<T>& values) {
    std::byte* const piece = Allocate(values.size() * sizeof(T));
    Check(cudaMemcpy(piece, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "uploading");
    return reinterpret_cast<T*>(piece);
  }

 private:
  std::vector<void*> pieces_;
};

struct Request {
  LayerShape shape;
  int query_tokens;
  int tail_tokens;               // at least; what the rule of seals leaves if negative
  LayerCalibration calibration;  // no heads: everything is exact
};

class Batch {
 public:
  Batch(const std::vector<int>& lengths, const Request& request, int copies) : request_(request) {
    const size_t kv_heads = static_cast<size_t>(request.shape.kv_heads);
    std::vector<DeviceHead> heads(kv_heads);
    if (has_planes()) {
      FillDeviceHeads(request.shape, request.calibration, heads.data());
      heads_ = memory_.Upload(heads);
    }
    launch_.shape = request.shape;
    launch_.rows_per_tile = AttendRowsPerTile(request.shape, request.query_tokens);
    const int rows = request.query_tokens * request.shape.queries_per_kv_head();
    launch_.tiles =
        static_cast<uint32_t>((rows + launch_.rows_per_tile - 1) / launch_.rows_per_tile);
    launch_.row_count = static_cast<uint32_t>(lengths.size() * kv_heads) * launch_.tiles;
    std::vector<uint32_t> record_bytes;
    for (size_t i = 0; i < lengths.size(); ++i) {
      for (const DeviceHead& head : heads) record_bytes.push_back(head.record_bytes);
    }
    launch_.record_bytes = memory_.Upload(record_bytes);
    launch_.record_bytes_max = *std::max_element(record_bytes.begin(), record_bytes.end());
    launch_.workspace = memory_.Allocate(AttendWorkspaceBytes());
    Check(cudaMemset(launch_.workspace, 0, AttendWorkspaceBytes()), "clearing");
    for (int copy = 0; copy < copies; ++copy) {
      std::vector<AttendCell> cells;
      for (const int length : lengths) cells.push_back(MakeCell(length, copy));
      cells_.push_back(memory_.Upload(cells));
    }
    Check(cudaDeviceSynchronize(), "filling");
    int device = 0;
    Check(cudaGetDevice(&device), "device");
    Check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
          "device");
    bytes_ /= copies;
  }

  cudaError_t Launch(int copy, cudaStream_t stream) const {
    AttendLaunch launch = launch_;
    launch.cells = cells_[static_cast<size_t>(copy)];
    for (uint32_t row = 0; row < launch_.row_count; row += kLaunchRowsMax) {
      launch.first_row = row;
      launch.row_count = std::min(kLaunchRowsMax, launch_.row_count - row);
      const cudaError_t error = LaunchAttend(launch, multiprocessors_, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  }

  // Segments, sinks and tails of one copy.
  double bytes() const { return bytes_; }

 private:
  bool has_planes() const { return !request_.calibration.heads.empty(); }

  AttendCell MakeCell(int length, int copy) {
    const LayerShape& shape = request_.shape;
    const int sinks = std::min(length, kSinkTokens);
    const int window = request_.tail_tokens < 0 ? kBlockTokens : request_.tail_tokens;
    const int sealed = !has_planes() || length - sinks < window
                           ? 0
                           : (length - sinks - window) / kBlockTokens * kBlockTokens;
    AttendCell cell = {};
    cell.heads = heads_;
    std::vector<PlanesRun> planes;
    for (int token = 0; token < sealed; token += kSegmentTokensMax) {
      const int count = std::min(kSegmentTokensMax, sealed - token);
      PlanesRun run = {};
      run.segment =
          Extent(SegmentBytes(shape, DType::kBf16, Codec::kPlanes, &request_.calibration, count),
                 static_cast<uint32_t>(copy + token));
      run.position = static_cast<uint32_t>(sinks + token);
      run.unit_begin = cell.planes_units;
      run.count = static_cast<uint16_t>(count);
      run.blocks = static_cast<uint16_t>(count / kBlockTokens);
      cell.planes_units += PlanesSteps(run.first, run.count);
      planes.push_back(run);
    }
    std::vector<ExactRun> exact{MakeExact(kSinkTokens, sinks, 0, cell, copy)};
    for (int token = sinks + sealed; token < length; token += kBlockTokens)
      exact.push_back(
          MakeExact(kBlockTokens, std::min(kBlockTokens, length - token), token, cell, copy));
    cell.planes_runs = static_cast<uint32_t>(planes.size());
    cell.exact_runs = static_cast<uint32_t>(exact.size());
    if (!planes.empty()) {
      PlanesRun* const runs = memory_.Upload(planes);
      FillTables<<<dim3(cell.planes_runs, static_cast<unsigned>(shape.kv_heads)), 128>>>(
          runs, heads_, static_cast<uint32_t>(SegmentHeaderBytes(shape.kv_heads)), shape.head_dim);
      cell.planes = runs;
    }
    cell.exact = memory_.Upload(exact);
    const size_t rows = static_cast<size_t>(request_.query_tokens * shape.query_heads);
    const size_t values = rows * static_cast<size_t>(shape.head_dim);
    std::byte* const q = memory_.Allocate(2 * values);
    FillBf16<<<64, 256>>>(reinterpret_cast<uint16_t*>(q), values, 99);
    cell.q = q;
    cell.output = reinterpret_cast<float*>(memory_.Allocate(4 * values));
    cell.log_sum_exp = reinterpret_cast<float*>(memory_.Allocate(4 * rows));
    cell.query_position = static_cast<uint32_t>(length - request_.query_tokens);
    cell.query_tokens = static_cast<uint32_t>(request_.query_tokens);
    cell.scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim));
    return cell;
  }

  // Random bits.
  std::byte* Extent(size_t bytes, uint32_t seed) {
    std::byte* const extent = memory_.Allocate(bytes);
    FillBits<<<256, 256>>>(reinterpret_cast<uint32_t*>(extent), bytes / 4, seed * 7919u);
    bytes_ += static_cast<double>(bytes);
    return extent;
  }

  ExactRun MakeExact(int capacity, int count, int position, AttendCell& cell, int copy) {
    const size_t bytes = ExactExtentBytes(request_.shape, DType::kBf16, capacity);
    std::byte* const rows = memory_.Allocate(bytes);
    FillBf16<<<256, 256>>>(reinterpret_cast<uint16_t*>(rows), bytes / 2,
                           static_cast<uint32_t>(copy * 31 + position));
    bytes_ += static_cast<double>(bytes);
    ExactRun run = {};
    run.rows = rows;
    run.head_stride_bytes = bytes / static_cast<size_t>(request_.shape.kv_heads);
    run.position = static_cast<uint32_t>(position);
    run.unit_begin = cell.exact_units;
    run.count = static_cast<uint16_t>(count);
    run.capacity = static_cast<uint16_t>(capacity);
    cell.exact_units += static_cast<uint32_t>((count + kExactChunkTokens - 1) / kExactChunkTokens);
    return run;
  }

  const Request request_;
  Memory memory_;
  const DeviceHead* heads_ = nullptr;
  AttendLaunch launch_;
  std::vector<const AttendCell*> cells_;  // one array a copy
  int multiprocessors_ = 0;
  double bytes_ = 0;
};

}  // namespace
}  // namespace kvdepot

extern "C" {

// `copies` batches of the same lengths in memory of their own. Pattern numbers repeat over the KV
// heads; none (pattern_count 0): everything is exact.
void* AttendBenchCreate(const int* lengths, int sessions, int kv_heads, int query_heads,
                        int head_dim, int query_tokens, int tail_tokens, const int* k_patterns,
                        const int* v_patterns, int pattern_count, int copies) {
  kvdepot::Request request{{kv_heads, query_heads, head_dim, 0, 0}, query_tokens, tail_tokens, {}};
  for (int head = 0; head < kv_heads && pattern_count > 0; ++head) {
    kvdepot::HeadLayout layout;
    for (kvdepot::TensorLayout* tensor : {&layout.k, &layout.v}) {
      for (int place = 0; place < head_dim; ++place)
        tensor->order.push_back(static_cast<uint8_t>((place * 37 + head) % head_dim));
    }
    layout.k.pattern = static_cast<uint8_t>(k_patterns[head % pattern_count]);
    layout.v.pattern = static_cast<uint8_t>(v_patterns[head % pattern_count]);
    request.calibration.heads.push_back(layout);
  }
  return new kvdepot::Batch({lengths, lengths + sessions}, request, copies);
}
void AttendBenchDestroy(void* batch) { delete static_cast<kvdepot::Batch*>(batch); }
double AttendBenchBytes(void* batch) { return static_cast<kvdepot::Batch*>(batch)->bytes(); }
int AttendBenchLaunch(void* batch, int copy, void* stream) {
  return static_cast<kvdepot::Batch*>(batch)->Launch(copy, static_cast<cudaStream_t>(stream));
}
}
