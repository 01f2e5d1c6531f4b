#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "gpu/attend_plan.h"
#include "gpu/backend.h"
#include "gpu/decode_runs_cuda.h"
#include "gpu/segment_view.h"
#include "tests/bench/attend_batch_cuda.h"

namespace kvdepot {
namespace {

[[noreturn]] void Fail(const char* what, const char* error) {
  std::fprintf(stderr, "attend_batch_cuda: %s: %s\n", what, error);
  std::abort();
}

void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(what, cudaGetErrorString(error));
}

DeviceBuffer NewBuffer(size_t bytes) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(bytes);
  if (!buffer.ok()) Fail("allocating", buffer.status().ToString().c_str());
  return *std::move(buffer);
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
__global__ void FillTables(const CodedRun* runs, const DeviceHead* heads, uint32_t header_bytes,
                           int head_dim) {
  const CodedRun run = runs[blockIdx.x];
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

}  // namespace

LayerCalibration CalibrationOfPatterns(const LayerShape& shape, const std::vector<int>& k_patterns,
                                       const std::vector<int>& v_patterns) {
  LayerCalibration calibration;
  if (k_patterns.empty()) return calibration;
  for (size_t head = 0; head < static_cast<size_t>(shape.kv_heads); ++head) {
    HeadLayout layout;
    for (TensorLayout* tensor : {&layout.k, &layout.v}) {
      for (int place = 0; place < shape.head_dim; ++place) {
        tensor->order.push_back(
            static_cast<uint8_t>((place * 37 + static_cast<int>(head)) % shape.head_dim));
      }
    }
    layout.k.pattern = static_cast<uint8_t>(k_patterns[head % k_patterns.size()]);
    layout.v.pattern = static_cast<uint8_t>(v_patterns[head % v_patterns.size()]);
    calibration.heads.push_back(layout);
  }
  return calibration;
}

AttendBatch::AttendBatch(AttendBatchRequest request) : request_(std::move(request)) {
  const size_t kv_heads = static_cast<size_t>(request_.shape.kv_heads);
  std::vector<DeviceHead> heads(kv_heads);
  if (has_planes()) {
    FillDeviceHeads(request_.shape, request_.calibration, heads.data());
    heads_ = Upload(heads);
  }
  launch_.shape = request_.shape;
  launch_.rows_per_tile = AttendRowsPerTile(request_.shape, request_.query_tokens);
  const int rows = request_.query_tokens * request_.shape.queries_per_kv_head();
  launch_.tiles = static_cast<uint32_t>((rows + launch_.rows_per_tile - 1) / launch_.rows_per_tile);
  launch_.row_count = static_cast<uint32_t>(request_.lengths.size() * kv_heads) * launch_.tiles;
  std::vector<uint32_t> block_costs;
  for (size_t i = 0; i < request_.lengths.size(); ++i) {
    for (const DeviceHead& head : heads) block_costs.push_back(BlockCostBytes(head));
  }
  launch_.block_cost_bytes = Upload(block_costs);
  for (const DeviceHead& head : heads)
    launch_.record_bytes_max = std::max(launch_.record_bytes_max, head.record_bytes);
  launch_.workspace = Allocate(AttendWorkspaceBytes());
  Check(cudaMemset(launch_.workspace, 0, AttendWorkspaceBytes()), "clearing");
  for (int copy = 0; copy < request_.copies; ++copy) {
    std::vector<AttendCell> cells;
    for (const int length : request_.lengths) {
      sessions_.push_back(MakeSession(length, copy));
      cells.push_back(sessions_.back().cell);
    }
    cells_.push_back(Upload(cells));
  }
  Check(cudaDeviceSynchronize(), "filling");
  int device = 0;
  Check(cudaGetDevice(&device), "device");
  Check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
        "device");
  bytes_ /= request_.copies;
}

cudaError_t AttendBatch::Launch(int copy, cudaStream_t stream) const {
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

size_t AttendBatch::output_values() const {
  return static_cast<size_t>(request_.query_tokens * request_.shape.query_heads) *
         static_cast<size_t>(request_.shape.head_dim);
}

void AttendBatch::Decode(int session, int first, int count, float* k, float* v) const {
  const int end = first + count;
  std::vector<DecodeRun> runs;
  int position = 0;
  for (const TokenRun& run : stored(0, session).runs) {
    const int from = std::max(first, position);
    const int to = std::min(end, position + run.count);
    if (from < to) {
      runs.push_back({{run.form, run.data, run.capacity, from - position, to - from},
                      static_cast<uint64_t>(from - first),
                      nullptr});
    }
    position += run.count;
  }
  const DeviceBuffer arguments = NewBuffer(runs.size() * sizeof(runs[0]));
  Check(cudaMemcpy(arguments.data(), runs.data(), runs.size() * sizeof(runs[0]),
                   cudaMemcpyHostToDevice),
        "decoding");
  DecodeBatch batch;
  batch.kv_heads = request_.shape.kv_heads;
  batch.head_dim = request_.shape.head_dim;
  batch.heads = heads_;
  batch.runs = reinterpret_cast<const DecodeRun*>(arguments.data());
  batch.run_count = static_cast<int>(runs.size());
  batch.run_tokens_max = kSegmentTokensMax;
  batch.to = DType::kFp32;
  batch.k = reinterpret_cast<std::byte*>(k);
  batch.v = reinterpret_cast<std::byte*>(v);
  Check(DecodeRuns(batch, nullptr), "decoding");
  Check(cudaDeviceSynchronize(), "decoding");
}

std::byte* AttendBatch::Allocate(size_t bytes) {
  memory_.push_back(NewBuffer(bytes));
  return memory_.back().data();
}

template <class T>
T* AttendBatch::Upload(const std::vector<T>& values) {
  std::byte* const piece = Allocate(values.size() * sizeof(T));
  Check(cudaMemcpy(piece, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "uploading");
  return reinterpret_cast<T*>(piece);
}

AttendBatch::Stored AttendBatch::MakeSession(int length, int copy) {
  const LayerShape& shape = request_.shape;
  const int sinks = std::min(length, kSinkTokens);
  const int window = request_.tail_tokens < 0 ? kBlockTokens : request_.tail_tokens;
  const int sealed = !has_planes() || length - sinks < window
                         ? 0
                         : (length - sinks - window) / kBlockTokens * kBlockTokens;
  Stored session;
  AttendCell& cell = session.cell;
  cell.heads = heads_;
  std::vector<ExactRun> exact{MakeExact(kSinkTokens, sinks, 0, session, copy)};
  std::vector<CodedRun> planes;
  for (int token = 0; token < sealed; token += kSegmentTokensMax) {
    planes.push_back(
        MakePlanes(std::min(kSegmentTokensMax, sealed - token), sinks + token, session, copy));
  }
  for (int token = sinks + sealed; token < length; token += kBlockTokens) {
    exact.push_back(
        MakeExact(kBlockTokens, std::min(kBlockTokens, length - token), token, session, copy));
  }
  cell.coded_runs = static_cast<uint32_t>(planes.size());
  cell.exact_runs = static_cast<uint32_t>(exact.size());
  if (!planes.empty()) {
    CodedRun* const runs = Upload(planes);
    FillTables<<<dim3(cell.coded_runs, static_cast<unsigned>(shape.kv_heads)), 128>>>(
        runs, heads_, static_cast<uint32_t>(SegmentHeaderBytes(shape.kv_heads)), shape.head_dim);
    cell.coded = runs;
  }
  cell.exact = Upload(exact);
  const size_t rows = static_cast<size_t>(request_.query_tokens * shape.query_heads);
  std::byte* const q = Allocate(2 * output_values());
  FillBf16<<<64, 256>>>(reinterpret_cast<uint16_t*>(q), output_values(), 99);
  cell.q = q;
  cell.output = reinterpret_cast<float*>(Allocate(4 * output_values()));
  cell.log_sum_exp = reinterpret_cast<float*>(Allocate(4 * rows));
  cell.query_position = static_cast<uint32_t>(length - request_.query_tokens);
  cell.query_tokens = static_cast<uint32_t>(request_.query_tokens);
  cell.scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim));
  return session;
}

CodedRun AttendBatch::MakePlanes(int count, int position, Stored& session, int copy) {
  const size_t bytes =
      SegmentBytes(request_.shape, DType::kBf16, Codec::kPlanes, &request_.calibration, count);
  std::byte* const segment = Allocate(bytes);
  FillBits<<<256, 256>>>(reinterpret_cast<uint32_t*>(segment), bytes / 4,
                         static_cast<uint32_t>(copy + position) * 7919u);
  bytes_ += static_cast<double>(bytes);
  CodedRun run = {};
  run.segment = segment;
  run.position = static_cast<uint32_t>(position);
  run.unit_begin = session.cell.coded_units;
  run.count = static_cast<uint16_t>(count);
  run.blocks = static_cast<uint16_t>(count / kBlockTokens);
  session.cell.coded_units += CodedSteps(run.first, run.count);
  session.runs.push_back({TokenRun::Form::kPlanes, segment, count, 0, count});
  return run;
}

ExactRun AttendBatch::MakeExact(int capacity, int count, int position, Stored& session, int copy) {
  const size_t bytes = ExactExtentBytes(request_.shape, DType::kBf16, capacity);
  std::byte* const rows = Allocate(bytes);
  FillBf16<<<256, 256>>>(reinterpret_cast<uint16_t*>(rows), bytes / 2,
                         static_cast<uint32_t>(copy * 31 + position));
  bytes_ += static_cast<double>(bytes);
  ExactRun run = {};
  run.rows = rows;
  run.head_stride_bytes = bytes / static_cast<size_t>(request_.shape.kv_heads);
  run.position = static_cast<uint32_t>(position);
  run.unit_begin = session.cell.exact_units;
  run.count = static_cast<uint16_t>(count);
  run.capacity = static_cast<uint16_t>(capacity);
  session.cell.exact_units +=
      static_cast<uint32_t>((count + kExactChunkTokens - 1) / kExactChunkTokens);
  session.runs.push_back({TokenRun::Form::kExact, rows, capacity, 0, count});
  return run;
}

}  // namespace kvdepot
