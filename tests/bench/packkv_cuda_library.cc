// Tokens stored by `packkv` for tests/bench/packkv.py, which loads this through ctypes and launches
// products into its own CUDA graphs.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "gpu/attend_launch.h"
#include "gpu/check.h"
#include "gpu/device_memory.h"
#include "gpu/packkv/body.h"
#include "gpu/segment_header.h"
#include "tests/bench/packkv_products_cuda.h"

namespace kvdepot {
namespace {

constexpr int kHeadDim = 128;
constexpr int kSegmentBlocks = kSegmentTokensMax / kBlockTokens;
// Encoding takes long: segments that differ, each of which stands in many places of memory.
constexpr int kDistinctSegments = 8;

template <class T>
T Value(absl::StatusOr<T> value) {
  KVDEPOT_CHECK(value.ok());
  return *std::move(value);
}

template <class T>
DeviceBuffer ToDevice(const std::vector<T>& values) {
  DeviceBuffer buffer = Value(DeviceBuffer::Allocate(values.size() * sizeof(T)));
  KVDEPOT_CHECK(cudaMemcpy(buffer.data(), values.data(), buffer.size_bytes(),
                           cudaMemcpyHostToDevice) == cudaSuccess);
  return buffer;
}

// Gaussian values of one segment.
class GaussianSegment {
 public:
  GaussianSegment(int kv_heads, uint32_t seed) : kv_heads_(kv_heads) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    values_.resize(static_cast<size_t>(kSegmentBlocks) * BlockValues());
    for (float& value : values_) value = normal(random);
  }
  std::vector<std::byte> Encode(const packkv::Options& options) const {
    std::vector<const std::byte*> blocks;
    for (size_t block = 0; block < kSegmentBlocks; ++block) {
      blocks.push_back(reinterpret_cast<const std::byte*>(&values_[block * BlockValues()]));
    }
    LayerShape shape;
    shape.kv_heads = kv_heads_;
    shape.query_heads = kv_heads_;
    shape.head_dim = kHeadDim;
    return *packkv::EncodeBody({shape, DType::kFp32, blocks}, options);
  }

 private:
  size_t BlockValues() const {
    return 2 * static_cast<size_t>(kv_heads_) * kBlockTokens * kHeadDim;
  }

  const int kv_heads_;
  std::vector<float> values_;
};

class PackKvBench {
 public:
  PackKvBench(int tokens, int kv_heads, int rows, const packkv::Options& options, int copies)
      : kv_heads_(kv_heads), segments_(tokens / kSegmentTokensMax) {
    const int distinct = std::min(kDistinctSegments, segments_);
    bodies_.resize(static_cast<size_t>(distinct));
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(distinct));
    for (int i = 0; i < distinct; ++i) {
      threads.emplace_back([this, i, kv_heads, &options] {
        bodies_[static_cast<size_t>(i)] =
            GaussianSegment(kv_heads, static_cast<uint32_t>(1 + i)).Encode(options);
      });
    }
    for (std::thread& thread : threads) thread.join();

    std::vector<DeviceBuffer> originals;
    size_t bytes = 0;
    for (const std::vector<std::byte>& body : bodies_) {
      originals.push_back(Value(DeviceBuffer::Allocate(body.size())));
      KVDEPOT_CHECK(cudaMemcpy(originals.back().data(), body.data(), body.size(),
                               cudaMemcpyHostToDevice) == cudaSuccess);
      const auto header = *reinterpret_cast<const packkv::BodyHeader*>(body.data());
      of_.k_bits = std::max<uint32_t>(of_.k_bits, header.k_bits);
      of_.v_bits = std::max<uint32_t>(of_.v_bits, header.v_bits);
      of_.k_tile_bytes = std::max(of_.k_tile_bytes, LargestTile(body, packkv::Tensor::kKey));
      of_.v_tile_bytes = std::max(of_.v_tile_bytes, LargestTile(body, packkv::Tensor::kValue));
    }
    for (int i = 0; i < segments_; ++i) bytes += Body(i).size();
    bytes_ = bytes;
    memory_ = Value(DeviceBuffer::Allocate(bytes * static_cast<size_t>(copies)));
    std::vector<CodedRun> runs;
    std::byte* to = memory_.data();
    for (int copy = 0; copy < copies; ++copy) {
      for (int i = 0; i < segments_; ++i) {
        const size_t size = Body(i).size();
        KVDEPOT_CHECK(cudaMemcpy(to, originals[static_cast<size_t>(i % distinct)].data(), size,
                                 cudaMemcpyDeviceToDevice) == cudaSuccess);
        addresses_.push_back(to);
        CodedRun run = {};
        // Only the body behind a segment's header is read.
        run.segment = to - SegmentHeaderBytes(kv_heads);
        run.position = static_cast<uint32_t>(i * kSegmentTokensMax);
        run.unit_begin = static_cast<uint32_t>(i) * CodedSteps(0, kSegmentTokensMax);
        run.count = kSegmentTokensMax;
        run.blocks = kSegmentBlocks;
        runs.push_back(run);
        to += size;
      }
    }
    runs_ = ToDevice(runs);
    int device = 0;
    KVDEPOT_CHECK(cudaGetDevice(&device) == cudaSuccess);
    KVDEPOT_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount,
                                         device) == cudaSuccess);
    workspace_ = Value(DeviceBuffer::Allocate(ValueProductsWorkspaceBytes(multiprocessors_)));
    KVDEPOT_CHECK(cudaMemset(workspace_.data(), 0, workspace_.size_bytes()) == cudaSuccess);
    attend_workspace_ = Value(DeviceBuffer::Allocate(AttendWorkspaceBytes()));
    KVDEPOT_CHECK(cudaMemset(attend_workspace_.data(), 0, attend_workspace_.size_bytes()) ==
                  cudaSuccess);
    block_costs_ = ToDevice(std::vector<uint32_t>(static_cast<size_t>(copies * kv_heads),
                                                  PackKvBlockCostBytes(kHeadDim)));
    of_.tokens = static_cast<uint32_t>(tokens);
    of_.kv_heads = static_cast<uint32_t>(kv_heads);
    of_.rows = static_cast<uint32_t>(rows);
  }

  void SetOverlap(bool overlaps) { of_.overlaps_launch_before = overlaps; }

  // Of one copy.
  size_t bytes() const { return bytes_; }

  cudaError_t Keys(int copy, const void* q, void* scores, cudaStream_t stream) const {
    return LaunchKeyProducts(Of(copy), static_cast<const __half*>(q), static_cast<__half*>(scores),
                             multiprocessors_, stream);
  }
  cudaError_t Values(int copy, const void* w, float* output, cudaStream_t stream) {
    return LaunchValueProducts(Of(copy), static_cast<const __half*>(w), output, workspace_.data(),
                               multiprocessors_, stream);
  }
  // Where one fp16 query token a copy lies, [query_head][channel], and its results go: before
  // Attend.
  void SetQuery(const void* q, float* output, float* log_sum_exp) {
    const int copies = static_cast<int>(runs_.size_bytes() / sizeof(CodedRun)) / segments_;
    std::vector<AttendCell> cells(static_cast<size_t>(copies));
    for (int copy = 0; copy < copies; ++copy) {
      AttendCell& cell = cells[static_cast<size_t>(copy)];
      cell = {};
      cell.coded = reinterpret_cast<const CodedRun*>(runs_.data()) + copy * segments_;
      cell.q = static_cast<const std::byte*>(q);
      cell.coded_runs = static_cast<uint32_t>(segments_);
      cell.coded_units = cell.coded_runs * CodedSteps(0, kSegmentTokensMax);
      cell.query_position = of_.tokens - 1;
      cell.query_tokens = 1;
      cell.scale = kLog2E / std::sqrt(static_cast<float>(kHeadDim));
      cell.output = output;
      cell.log_sum_exp = log_sum_exp;
    }
    cells_ = ToDevice(cells);
  }
  cudaError_t Attend(int copy, cudaStream_t stream) const {
    AttendLaunch launch;
    launch.shape.kv_heads = kv_heads_;
    launch.shape.query_heads = kv_heads_ * static_cast<int>(of_.rows);
    launch.shape.head_dim = kHeadDim;
    launch.dtype = DType::kFp16;
    launch.codec = Codec::kPackKv;
    launch.rows_per_tile = AttendRowsPerTile(launch.shape, 1, launch.codec);
    launch.tiles = 1;
    launch.cells = reinterpret_cast<const AttendCell*>(cells_.data()) + copy;
    launch.block_cost_bytes = reinterpret_cast<const uint32_t*>(block_costs_.data());
    launch.row_count = of_.kv_heads;
    launch.workspace = attend_workspace_.data();
    return LaunchAttend(launch, multiprocessors_, stream);
  }
  // [kv_head][token][channel], by the CPU's decoder.
  void Decode(bool is_value, float* values) const {
    for (int head = 0; head < kv_heads_; ++head) {
      const float* const first = values;
      for (int i = 0; i < segments_; ++i) {
        const size_t count = static_cast<size_t>(kSegmentTokensMax) * kHeadDim;
        const size_t distinct = bodies_.size();
        if (static_cast<size_t>(i) < distinct) {
          ViewOf(Body(i)).Decode(head, is_value ? packkv::Tensor::kValue : packkv::Tensor::kKey, 0,
                                 {values, count});
        } else {
          std::copy_n(first + static_cast<size_t>(i) % distinct * count, count, values);
        }
        values += count;
      }
    }
  }

 private:
  const std::vector<std::byte>& Body(int segment) const {
    return bodies_[static_cast<size_t>(segment) % bodies_.size()];
  }
  packkv::BodyView ViewOf(const std::vector<std::byte>& body) const {
    return Value(packkv::BodyView::Validate(body, kv_heads_, kHeadDim, kSegmentBlocks));
  }
  uint32_t LargestTile(const std::vector<std::byte>& body, packkv::Tensor tensor) const {
    const packkv::BodyView view = ViewOf(body);
    size_t largest = 0;
    for (int block = 0; block < kSegmentBlocks; ++block) {
      for (int head = 0; head < kv_heads_; ++head) {
        size_t bytes = 0;
        for (int r = 0; r < view.rounds(); ++r) bytes += view.round(block, head, tensor, r).size();
        largest = std::max(largest, bytes);
      }
    }
    return static_cast<uint32_t>(largest);
  }
  PackKvTokens Of(int copy) const {
    PackKvTokens of = of_;
    std::copy_n(addresses_.begin() + copy * segments_, segments_, of.bodies);
    return of;
  }

  const int kv_heads_;
  const int segments_;
  PackKvTokens of_;
  size_t bytes_ = 0;
  std::vector<std::vector<std::byte>> bodies_;
  DeviceBuffer memory_;
  std::vector<const std::byte*> addresses_;
  DeviceBuffer runs_;
  DeviceBuffer cells_;
  DeviceBuffer block_costs_;
  mutable DeviceBuffer attend_workspace_;
  DeviceBuffer workspace_;
  int multiprocessors_ = 0;
};

}  // namespace
}  // namespace kvdepot

extern "C" {

// `tokens`: a multiple of 1,024. Repacking none.
void* PackKvBenchCreate(int tokens, int kv_heads, int rows, float k_scale, float v_scale,
                        int copies) {
  kvdepot::packkv::Options options;
  options.k_relative_scale = k_scale;
  options.v_relative_scale = v_scale;
  return new kvdepot::PackKvBench(tokens, kv_heads, rows, options, copies);
}
void PackKvBenchDestroy(void* bench) { delete static_cast<kvdepot::PackKvBench*>(bench); }
double PackKvBenchBytes(void* bench) {
  return static_cast<double>(static_cast<kvdepot::PackKvBench*>(bench)->bytes());
}
// PackKvTokens::overlaps_launch_before.
void PackKvBenchSetOverlap(void* bench, int overlaps) {
  static_cast<kvdepot::PackKvBench*>(bench)->SetOverlap(overlaps != 0);
}
// LaunchKeyProducts and LaunchValueProducts over a copy's tokens.
int PackKvBenchKeys(void* bench, int copy, const void* q, void* scores, void* stream) {
  return static_cast<kvdepot::PackKvBench*>(bench)->Keys(copy, q, scores,
                                                         static_cast<cudaStream_t>(stream));
}
int PackKvBenchValues(void* bench, int copy, const void* w, float* output, void* stream) {
  return static_cast<kvdepot::PackKvBench*>(bench)->Values(copy, w, output,
                                                           static_cast<cudaStream_t>(stream));
}
// As the class's.
void PackKvBenchSetQuery(void* bench, const void* q, float* output, float* log_sum_exp) {
  static_cast<kvdepot::PackKvBench*>(bench)->SetQuery(q, output, log_sum_exp);
}
int PackKvBenchAttend(void* bench, int copy, void* stream) {
  return static_cast<kvdepot::PackKvBench*>(bench)->Attend(copy, static_cast<cudaStream_t>(stream));
}
// To host memory.
void PackKvBenchDecode(void* bench, int is_value, float* values) {
  static_cast<kvdepot::PackKvBench*>(bench)->Decode(is_value != 0, values);
}
}
