// The CPU backend: device memory is host memory, kernels are the *_cpu functions.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gpu/attend_cpu.h"
#include "gpu/backend.h"
#include "gpu/check.h"
#include "gpu/decode_runs_cpu.h"
#include "gpu/finite_cpu.h"
#include "gpu/host_memory.h"
#include "gpu/packkv/body.h"
#include "gpu/planes/encode_cpu.h"
#include "gpu/planes/format.h"
#include "gpu/planes/own_calibration.h"
#include "gpu/raw/tokens_cpu.h"
#include "gpu/segment_view.h"
#include "gpu/shared_memory.h"
#include "gpu/slab_pool.h"
#include "gpu/worker_pool.h"

namespace kvdepot {
namespace {

std::string ProcessorName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(": ") + 2);
  }
  return "unknown";
}

class CpuBackend : public Backend {
 public:
  // The pool has no budget: a page of a slab takes memory from its first use on, and what extents
  // take in all is bounded by the engine's ledger.
  CpuBackend(int threads, uint64_t slab_bytes)
      : slabs_(MakeSharedMemory, slab_bytes, UINT64_MAX), pool_(threads), attention_(&pool_) {}

  std::string name() const override { return "cpu"; }
  std::string device() const override { return ProcessorName(); }

  absl::Status Supports(const LayerShape& /*shape*/, DType /*dtype*/, Codec /*codec*/,
                        const packkv::Options& /*packkv*/) const override {
    return absl::OkStatus();
  }

  uint64_t memory_bytes() const override { return HostMemoryBytes(); }

  SlabUsage slab_usage() const override { return slabs_.usage(); }
  absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) override {
    return slabs_.Export(serial);
  }
  absl::StatusOr<std::unique_ptr<MappedRegion>> MapBuffer(IpcRegion region) override {
    if (region.kind == RegionKind::kSharedMemory) {
      return MapSharedMemory(region, RegionAccess::kReadWrite);
    }
    return absl::InvalidArgumentError("kind: memory of a GPU, must be shared memory");
  }

  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes) override {
    return slabs_.Allocate(tenant, use, size_bytes);
  }

  size_t FirstNonFinite(const std::byte* values, MemorySpace /*space*/, DType dtype,
                        size_t count) override {
    return kvdepot::FirstNonFinite(values, dtype, count);
  }
  size_t FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) override;

  void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                   int count, std::byte* extent, int capacity, int first_slot) override {
    raw::WriteTokens(shape, dtype, tokens, from, count, extent, capacity, first_slot);
  }

  void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from, std::byte* to,
                  int capacity, int count) override {
    const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
    const size_t tensor_bytes = static_cast<size_t>(capacity) * row_bytes;
    for (size_t tensor = 0; tensor < 2 * static_cast<size_t>(shape.kv_heads); ++tensor) {
      memcpy(to + tensor * tensor_bytes, from + tensor * tensor_bytes,
             static_cast<size_t>(count) * row_bytes);
    }
  }

  std::vector<LayerCalibration> DeriveCalibrations(absl::Span<const CalibrationJob> jobs) override {
    std::vector<LayerCalibration> calibrations;
    calibrations.reserve(jobs.size());
    for (const CalibrationJob& job : jobs) {
      calibrations.push_back(
          planes::DeriveCalibration(job.source, job.profile, job.query_second_moments));
    }
    return calibrations;
  }

  // A segment is work enough.
  size_t encode_bytes_max() const override { return 1; }
  void Encode(absl::Span<EncodeJob> jobs) override {
    for (EncodeJob& job : jobs) job.in_range = EncodeSegment(&job);
  }

  absl::Status Attend(absl::Span<const AttendItem> items) override {
    attention_.Attend(items);
    return absl::OkStatus();
  }

  void Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
              absl::Span<const TokenRun> runs, DType to, MemorySpace /*space*/, std::byte* k,
              std::byte* v) override {
    DecodeRuns(shape, dtype, calibration, runs, to, k, v);
  }

  void ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) override {
    memcpy(host, device, size_bytes);
  }
  void WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) override {
    memcpy(device, host, size_bytes);
  }

  absl::Status VerifySegment(const std::byte* segment, size_t size_bytes,
                             const SegmentGeometry& geometry) override {
    absl::Status status = ValidateSegment(absl::MakeConstSpan(segment, size_bytes));
    return status.ok() ? CheckGeometry(SegmentView::Of(segment), geometry) : status;
  }

 private:
  static absl::Span<const float> KeyWeights(const EncodeJob& job) {
    if (!job.packkv.normalize || job.calibration == nullptr) return {};
    return job.calibration->k_channel_weights;
  }

  bool EncodeSegment(EncodeJob* job) {
    const SealBlocks& source = job->source;
    std::byte* const segment = job->segment;
    const int tokens = static_cast<int>(source.blocks.size()) * kBlockTokens;
    job->size_bytes =
        SegmentBytes(source.shape, source.dtype, job->codec, job->calibration, tokens, job->packkv);
    std::byte* const behind_header = segment + SegmentHeaderBytes(source.shape.kv_heads);
    if (job->codec == Codec::kPackKv) {
      const absl::optional<std::vector<std::byte>> body =
          packkv::EncodeBody(source, job->packkv, KeyWeights(*job));
      if (!body.has_value()) return false;
      const size_t size_bytes = SegmentHeaderBytes(source.shape.kv_heads) + body->size();
      KVDEPOT_CHECK(size_bytes <= job->size_bytes);
      job->size_bytes = size_bytes;
      memcpy(behind_header, body->data(), body->size());
    }
    WriteSegmentHeader(source.shape, source.dtype, job->codec, job->calibration, tokens,
                       job->size_bytes, segment);
    if (job->codec == Codec::kRaw) raw::EncodeSegment(source, behind_header);
    if (job->codec == Codec::kPlanes && !EncodePlanes(source, *job->calibration, segment)) {
      return false;
    }
    const uint64_t checksum = SegmentChecksum(absl::MakeConstSpan(segment, job->size_bytes));
    memcpy(segment + offsetof(SegmentHeader, checksum), &checksum, sizeof(checksum));
    return true;
  }

  // Heads and K, V are independent: one task each.
  bool EncodePlanes(const SealBlocks& source, const LayerCalibration& calibration,
                    std::byte* segment) {
    const SegmentView view = SegmentView::Of(segment);
    std::atomic<bool> in_range{true};
    pool_.ParallelFor(2 * source.shape.kv_heads, [&](int task, int) {
      const int head = task / 2;
      const bool is_key = task % 2 == 0;
      const HeadLayout& layout = calibration.heads[static_cast<size_t>(head)];
      const planes::Pattern k_pattern = view.k_pattern(head);
      const planes::Pattern v_pattern = view.v_pattern(head);
      std::byte* part = segment + (view.part(head) - segment);
      const size_t table_bytes = planes::TableBytes(source.shape.head_dim);
      planes::TensorSink sink;
      sink.is_key = is_key;
      sink.table = part + (is_key ? 0 : table_bytes);
      sink.records = part + 2 * table_bytes;
      sink.record_bytes = planes::RecordBytes(k_pattern, v_pattern);
      sink.planes_offset =
          planes::kTokenScaleBytes + (is_key ? 0 : planes::GroupBytes(k_pattern.total()));
      if (!planes::EncodeTensor(planes::TensorBlocksOf(source, head, is_key),
                                is_key ? layout.k : layout.v, sink)) {
        in_range.store(false);
      }
    });
    return in_range.load();
  }

  SlabPool slabs_;
  WorkerPool pool_;
  CpuAttention attention_;
};

size_t CpuBackend::FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) {
  for (size_t i = 0; i < runs.size(); ++i) {
    const auto& [shape, run] = runs[i];
    const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
    const size_t values = static_cast<size_t>(run.count) * static_cast<size_t>(shape.head_dim);
    const std::byte* strip = run.data + static_cast<size_t>(run.first) * row_bytes;
    for (int tensor = 0; tensor < 2 * shape.kv_heads; ++tensor) {
      if (kvdepot::FirstNonFinite(strip, dtype, values) < values) return i;
      strip += static_cast<size_t>(run.capacity) * row_bytes;
    }
  }
  return runs.size();
}

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(int threads, uint64_t slab_bytes) {
  return std::make_unique<CpuBackend>(threads, slab_bytes);
}

}  // namespace kvdepot
