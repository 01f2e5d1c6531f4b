// Throughput of encoding and decoding on the GPU: a prefill of 8192 tokens, 32 layers, 8 KV heads,
// head_dim 128, bf16, as segments of 1024 tokens, all layers in one batch; by `packkv` 32 of these
// segments. Prints one JSON row a line: bf16 bytes a second, median and spread (distance of the
// quartiles over the median) of kRepeats runs, timed by events. The data are larger than any L2
// cache.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gpu/backend.h"
#include "gpu/check.h"
#include "gpu/checksum_cuda.h"
#include "gpu/decode_runs_cuda.h"
#include "gpu/device_head.h"
#include "gpu/numeric.h"
#include "gpu/packkv/body.h"
#include "gpu/packkv/encode_cuda.h"
#include "gpu/planes/encode_cuda.h"
#include "gpu/planes/own_calibration.h"
#include "gpu/segment_header.h"
#include "tests/gpu/device_array.h"

namespace kvdepot {
namespace {

constexpr int kTokens = 8192;
constexpr int kLayers = 32;
constexpr int kSegmentsPerLayer = kTokens / kSegmentTokensMax;
constexpr int kSegments = kLayers * kSegmentsPerLayer;
constexpr int kBlocksPerSegment = kSegmentTokensMax / kBlockTokens;
constexpr int kRepeats = 31;
constexpr LayerShape kShape{8, 32, 128, 0, 0};

void Check(cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  KVDEPOT_CHECK(error == cudaSuccess);
}

// Exact extents of 64 tokens, channels of unlike spread and centre; `distinct` different ones.
std::vector<std::byte> DrawExtents(int distinct) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> deviation(2 * kShape.row_values()), centre(2 * kShape.row_values());
  for (float& d : deviation) d = std::exp(0.7f * normal(random));
  for (float& c : centre) c = normal(random);
  std::vector<float> pool(1 << 20);
  for (float& value : pool) value = normal(random);
  std::vector<uint16_t> values;
  const size_t head_dim = static_cast<size_t>(kShape.head_dim);
  for (int extent = 0; extent < distinct; ++extent) {
    for (size_t tensor = 0; tensor < 2 * static_cast<size_t>(kShape.kv_heads); ++tensor) {
      for (int token = 0; token < kBlockTokens; ++token) {
        const size_t from = random() % (pool.size() - head_dim);
        for (size_t c = 0; c < head_dim; ++c) {
          const size_t channel = tensor * head_dim + c;
          values.push_back(FloatToBf16(centre[channel] + deviation[channel] * pool[from + c]));
        }
      }
    }
  }
  const std::byte* bytes = reinterpret_cast<const std::byte*>(values.data());
  return {bytes, bytes + values.size() * sizeof(uint16_t)};
}

LayerCalibration DrawCalibration(Profile profile) {
  std::mt19937 random(2);
  LayerCalibration calibration;
  for (int head = 0; head < kShape.kv_heads; ++head) {
    HeadLayout layout;
    for (TensorLayout* tensor : {&layout.k, &layout.v}) {
      tensor->order.resize(static_cast<size_t>(kShape.head_dim));
      std::iota(tensor->order.begin(), tensor->order.end(), static_cast<uint8_t>(0));
      std::shuffle(tensor->order.begin(), tensor->order.end(), random);
    }
    layout.k.pattern = static_cast<uint8_t>(planes::PatternAbove(kShape.head_dim, profile));
    layout.v.pattern = static_cast<uint8_t>(planes::PatternBelow(kShape.head_dim, profile));
    calibration.heads.push_back(layout);
  }
  return calibration;
}

// Times `queue(stream)`, captured once and replayed.
template <class Queue>
std::vector<float> Milliseconds(const Queue& queue) {
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream));
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  Check(queue(stream));
  cudaGraph_t graph;
  Check(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  Check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin));
  Check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < kRepeats + 3; ++i) {
    Check(cudaEventRecord(begin, stream));
    Check(cudaGraphLaunch(executable, stream));
    Check(cudaEventRecord(end, stream));
    Check(cudaStreamSynchronize(stream));
    float milliseconds;
    Check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) times.push_back(milliseconds);
  }
  Check(cudaGraphExecDestroy(executable));
  Check(cudaGraphDestroy(graph));
  Check(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times;
}

void PrintRow(const std::string& name, double bytes, const std::vector<float>& times,
              double bits_per_value) {
  const double median = times[times.size() / 2];
  const double spread = (times[times.size() * 3 / 4] - times[times.size() / 4]) / median;
  std::printf(
      "{\"name\": \"%s\", \"value\": %.4g, \"unit\": \"bytes/s\", \"repeats\": %zu, "
      "\"spread\": %.3f, \"milliseconds\": %.4f, \"bits_per_value\": %.4f}\n",
      name.c_str(), bytes / (1e-3 * median), times.size(), spread, median, bits_per_value);
  std::fflush(stdout);
}

void Run(const DeviceArray<std::byte>& extents, Profile profile, const char* name) {
  const size_t extent_bytes = ExactExtentBytes(kShape, DType::kBf16, kBlockTokens);
  const LayerCalibration calibration = DrawCalibration(profile);
  const size_t segment_bytes =
      SegmentBytes(kShape, DType::kBf16, Codec::kPlanes, &calibration, kSegmentTokensMax);
  std::vector<DeviceHead> host_heads(static_cast<size_t>(kShape.kv_heads));
  FillDeviceHeads(kShape, calibration, host_heads.data());
  const DeviceArray<DeviceHead> heads(host_heads);
  const DeviceArray<std::byte> segments(kSegments * segment_bytes);

  std::vector<const std::byte*> host_blocks;
  for (int i = 0; i < kSegments * kBlocksPerSegment; ++i)
    host_blocks.push_back(extents.data() + static_cast<size_t>(i) * extent_bytes);
  const DeviceArray<const std::byte*> blocks(host_blocks);
  std::vector<SegmentJob> host_jobs;
  for (size_t i = 0; i < kSegments; ++i) {
    SegmentJob job{};
    job.blocks = blocks.data() + i * kBlocksPerSegment;
    job.heads = heads.data();
    job.segment = segments.data() + i * segment_bytes;
    job.size_bytes = segment_bytes;
    job.block_count = kBlocksPerSegment;
    host_jobs.push_back(job);
  }
  const DeviceArray<SegmentJob> jobs(host_jobs);
  const SegmentBatch batch{kShape.kv_heads, kShape.head_dim,   DType::kBf16, jobs.data(),
                           kSegments,       kBlocksPerSegment, segment_bytes};
  const DeviceArray<std::byte> workspace(ChecksumWorkspaceBytes(kSegments, segment_bytes));
  const DeviceArray<uint32_t> out_of_range(kSegments);

  const double values = 2.0 * kTokens * kLayers * static_cast<double>(kShape.row_values());
  const double bits_per_value = 8.0 * kSegments * static_cast<double>(segment_bytes) / values;
  const std::string suffix = std::string(name) + "/l8192_x32";
  PrintRow("encode/" + suffix, 2 * values, Milliseconds([&](cudaStream_t stream) {
             return planes::EncodeSegments(batch, out_of_range.data(), workspace.data(), stream);
           }),
           bits_per_value);
  for (const uint32_t flag : out_of_range.Get()) KVDEPOT_CHECK(flag == 0);
  PrintRow("checksum/" + suffix, 2 * values, Milliseconds([&](cudaStream_t stream) {
             return WriteChecksums(jobs.data(), kSegments, segment_bytes, workspace.data(), stream);
           }),
           bits_per_value);

  std::vector<DecodeRun> host_runs;
  for (size_t i = 0; i < kSegments; ++i) {
    const TokenRun run{TokenRun::Form::kPlanes, segments.data() + i * segment_bytes,
                       kSegmentTokensMax, 0, kSegmentTokensMax};
    host_runs.push_back({run, i * kSegmentTokensMax, nullptr});
  }
  const DeviceArray<DecodeRun> runs(host_runs);
  const size_t tensor_bytes =
      static_cast<size_t>(values);  // of K, or V: half of them, 2 bytes each
  const DeviceArray<std::byte> k(tensor_bytes), v(tensor_bytes);
  DecodeBatch decode;
  decode.kv_heads = kShape.kv_heads;
  decode.head_dim = kShape.head_dim;
  decode.heads = heads.data();
  decode.runs = runs.data();
  decode.run_count = kSegments;
  decode.run_tokens_max = kSegmentTokensMax;
  decode.k = k.data();
  decode.v = v.data();
  PrintRow("decode/" + suffix, 2 * values,
           Milliseconds([&](cudaStream_t stream) { return DecodeRuns(decode, stream); }),
           bits_per_value);
  // A layer a launch, as a client's Decode of one layer after another.
  PrintRow("decode_by_layer/" + suffix, 2 * values, Milliseconds([&](cudaStream_t stream) {
             for (int layer = 0; layer < kLayers; ++layer) {
               DecodeBatch one = decode;
               one.runs = runs.data() + layer * kSegmentsPerLayer;
               one.run_count = kSegmentsPerLayer;
               if (const cudaError_t error = DecodeRuns(one, stream); error != cudaSuccess)
                 return error;
             }
             return cudaSuccess;
           }),
           bits_per_value);
}

// Bodies of packkv segments, as many as the engine encodes in one batch.
void RunPackKv(const DeviceArray<std::byte>& extents, packkv::Repacking repacking,
               const char* name) {
  constexpr size_t kBatchSegments = 32;
  packkv::Options options;
  options.repacking = repacking;
  const size_t header_bytes = SegmentHeaderBytes(kShape.kv_heads);
  const size_t segment_bytes =
      (header_bytes + packkv::BodyBytesMax(kShape, options, kBlocksPerSegment) + 127) / 128 * 128;
  const size_t extent_bytes = ExactExtentBytes(kShape, DType::kBf16, kBlockTokens);
  const DeviceArray<std::byte> segments(kBatchSegments * segment_bytes);
  std::vector<const std::byte*> host_blocks;
  for (size_t i = 0; i < kBatchSegments * kBlocksPerSegment; ++i)
    host_blocks.push_back(extents.data() + i * extent_bytes);
  const DeviceArray<const std::byte*> blocks(host_blocks);
  std::vector<SegmentJob> host_jobs;
  for (size_t i = 0; i < kBatchSegments; ++i) {
    SegmentJob job{};
    job.blocks = blocks.data() + i * kBlocksPerSegment;
    job.segment = segments.data() + i * segment_bytes;
    job.block_count = kBlocksPerSegment;
    host_jobs.push_back(job);
  }
  const DeviceArray<SegmentJob> jobs(host_jobs);
  SegmentBatch batch;
  batch.kv_heads = kShape.kv_heads;
  batch.head_dim = kShape.head_dim;
  batch.dtype = DType::kBf16;
  batch.jobs = jobs.data();
  batch.job_count = kBatchSegments;
  batch.block_count_max = kBlocksPerSegment;
  const DeviceArray<std::byte> workspace(packkv::EncodeWorkspaceBytes(batch, options));
  const DeviceArray<uint32_t> out_of_range(kBatchSegments);
  const DeviceArray<uint64_t> body_bytes(kBatchSegments);
  const std::vector<float> times = Milliseconds([&](cudaStream_t stream) {
    return packkv::EncodeBodies(batch, options, header_bytes, out_of_range.data(),
                                body_bytes.data(), workspace.data(), stream);
  });
  for (const uint32_t flag : out_of_range.Get()) KVDEPOT_CHECK(flag == 0);
  const std::vector<uint64_t> sizes = body_bytes.Get();
  const double bits = 8.0 * static_cast<double>(std::accumulate(sizes.begin(), sizes.end(), 0ull));
  const double bytes = kBatchSegments * kBlocksPerSegment * static_cast<double>(extent_bytes);
  PrintRow(std::string("encode/") + name + "/l1024_x32", bytes, times, bits / (bytes / 2));
}

}  // namespace
}  // namespace kvdepot

int main() {
  using namespace kvdepot;
  if (!HasCudaDevice()) {
    std::fprintf(stderr, "codec_cuda_bench: no CUDA device\n");
    return 1;
  }
  // As many extents in device memory as the prefill has, from fewer different ones.
  constexpr int kExtents = kSegments * kBlocksPerSegment;
  constexpr int kDistinct = 96;
  const std::vector<std::byte> drawn = DrawExtents(kDistinct);
  const size_t extent_bytes = drawn.size() / kDistinct;
  const DeviceArray<std::byte> extents(kExtents * extent_bytes);
  for (int i = 0; i < kExtents; ++i) {
    Check(cudaMemcpy(extents.data() + static_cast<size_t>(i) * extent_bytes,
                     drawn.data() + static_cast<size_t>(i % kDistinct) * extent_bytes, extent_bytes,
                     cudaMemcpyHostToDevice));
  }
  Run(extents, Profile::kTiny, "tiny");
  Run(extents, Profile::kCompact, "compact");
  Run(extents, Profile::kBalanced, "balanced");
  Run(extents, Profile::kFine, "fine");
  RunPackKv(extents, packkv::Repacking::kNone, "packkv_none");
  RunPackKv(extents, packkv::Repacking::kMedian, "packkv_median");
  return 0;
}
