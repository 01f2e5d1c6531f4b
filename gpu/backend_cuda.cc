// The CUDA backend: one stream, on which everything runs in order.
#include "gpu/backend_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gpu/attend_cuda.h"
#include "gpu/check.h"
#include "gpu/cuda_device.h"
#include "gpu/cuda_status.h"
#include "gpu/decode_runs_cuda.h"
#include "gpu/device_head.h"
#include "gpu/device_memory.h"
#include "gpu/device_slab.h"
#include "gpu/finite_cpu.h"
#include "gpu/kernel_arguments.h"
#include "gpu/packkv/cuda_support.h"
#include "gpu/planes/own_calibration.h"
#include "gpu/raw/finite_cuda.h"
#include "gpu/segments_cuda.h"
#include "gpu/staging_ring.h"
#include "gpu/tokens_cuda.h"

namespace kvdepot {
namespace {

// A message of a prompt is a few megabytes: one slot is filled while the device reads others.
constexpr int kStagingSlots = 4;
constexpr size_t kStagingSlotBytes = size_t{4} << 20;
// What a segment of 1024 tokens and 8 heads of 128 takes in fp32, K and V.
constexpr size_t kDecodedBytes = size_t{8} << 20;
// Heads of the largest layer (1024 of them take 557 KiB), and the runs of a large Fetch.
constexpr size_t kArgumentsBytes = size_t{4} << 20;
constexpr size_t kDecodeRunsMax = 16384;
constexpr size_t kFiniteRunsMax = 16384;

// What calls share, made once: after the start nothing but slabs and large batches of attention
// take device memory.
struct Workspace {
  Stream stream;
  StagingRing staging;
  KernelArguments arguments;
  CudaSegments segments;
  PinnedBuffer decoded;

  static absl::StatusOr<Workspace> Create() {
    Workspace made;
    absl::Status status;
    const auto take = [&status](auto made_part, auto* part) {
      if (!made_part.ok()) status.Update(made_part.status());
      if (made_part.ok()) *part = *std::move(made_part);
    };
    take(Stream::Create(), &made.stream);
    take(StagingRing::Create(kStagingSlots, kStagingSlotBytes), &made.staging);
    take(KernelArguments::Create(kArgumentsBytes), &made.arguments);
    take(CudaSegments::Create(), &made.segments);
    take(PinnedBuffer::Allocate(2 * kDecodedBytes), &made.decoded);
    if (!status.ok()) return status;
    return made;
  }
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(CudaDevice device, const CudaBackendOptions& options, Workspace workspace,
              CudaAttention attention)
      : device_(std::move(device)),
        on_fault_(options.on_fault),
        slabs_(
            [this, kind = options.slab_kind](size_t size_bytes, ExtentUse) {
              return MakeDeviceSlab(device_, size_bytes, kind);
            },
            options.slab_bytes, UINT64_MAX),
        workspace_(std::move(workspace)),
        attention_(std::move(attention)) {}

  std::string name() const override { return "cuda"; }
  std::string device() const override { return device_.uuid; }

  absl::Status health() const override {
    const std::lock_guard<std::mutex> lock(health_mutex_);
    return health_;
  }

  absl::Status Supports(const LayerShape& shape, DType /*dtype*/, Codec codec,
                        const packkv::Options& packkv) const override {
    if (codec != Codec::kPackKv) return absl::OkStatus();
    absl::Status status = packkv::SupportedOnCuda(shape, packkv);
    if (status.ok()) return status;
    return absl::UnimplementedError(
        absl::StrCat("codec: packkv on cuda device ", device_.uuid, ": ", status.message()));
  }

  uint64_t memory_bytes() const override {
    size_t free = 0;
    size_t total = 0;
    if (cudaSetDevice(device_.index) != cudaSuccess) return 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
    return free + slabs_.usage().slab_bytes;
  }
  void SetBudget(uint64_t budget_bytes) override { slabs_.SetBudget(budget_bytes); }
  SlabUsage slab_usage() const override { return slabs_.usage(); }
  absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) override {
    return slabs_.Export(serial);
  }
  absl::StatusOr<std::unique_ptr<MappedRegion>> MapBuffer(IpcRegion region) override;

  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes) override {
    absl::StatusOr<std::unique_ptr<Extent>> extent = slabs_.Allocate(tenant, use, size_bytes);
    if (!extent.ok() && absl::IsInternal(extent.status())) Fail(extent.status());
    return extent;
  }

  size_t FirstNonFinite(const std::byte* values, MemorySpace space, DType dtype,
                        size_t count) override;
  size_t FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) override;
  void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                   int count, std::byte* extent, int capacity, int first_slot) override;
  void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from, std::byte* to,
                  int capacity, int count) override;
  std::vector<LayerCalibration> DeriveCalibrations(absl::Span<const CalibrationJob> jobs) override;
  size_t encode_bytes_max() const override { return CudaSegments::kEncodeBytesMax; }
  void Encode(absl::Span<EncodeJob> jobs) override;
  absl::Status Attend(absl::Span<const AttendItem> items) override;
  void Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
              absl::Span<const TokenRun> runs, DType to, MemorySpace space, std::byte* k,
              std::byte* v) override;
  void Synchronize() override {
    if (Enter()) Ok(workspace_.stream.Synchronize());
  }
  void ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) override;
  void WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) override;
  absl::Status VerifySegment(const std::byte* segment, size_t size_bytes,
                             const SegmentGeometry& geometry) override;

 private:
  // The one place that hears of every failure of the device. Whether to go on.
  bool Ok(const absl::Status& status) {
    if (!status.ok()) Fail(status);
    return status.ok();
  }
  bool Ok(cudaError_t error, absl::string_view what) { return Ok(CudaStatus(error, what)); }
  void Fail(const absl::Status& status);

  // Whether the device can be used, made current for this thread: calls come from several.
  bool Enter() { return health().ok() && Ok(cudaSetDevice(device_.index), "cudaSetDevice"); }

  const DeviceHead* AddHeads(const LayerShape& shape, const LayerCalibration& calibration);

  const CudaDevice device_;
  const std::function<void(const absl::Status&)> on_fault_;
  mutable std::mutex health_mutex_;
  absl::Status health_;  // guarded by health_mutex_
  SlabPool slabs_;
  Workspace workspace_;
  CudaAttention attention_;
};

void CudaBackend::Fail(const absl::Status& status) {
  {
    const std::lock_guard<std::mutex> lock(health_mutex_);
    if (!health_.ok()) return;
    health_ = absl::InternalError(status.message());
  }
  if (on_fault_) on_fault_(status);
}

absl::StatusOr<std::unique_ptr<MappedRegion>> CudaBackend::MapBuffer(IpcRegion region) {
  if (region.kind != RegionKind::kCudaIpc) {
    return absl::InvalidArgumentError("kind: host memory, must be a handle of cudaIpc");
  }
  region.device = device_.uuid;
  return MapDeviceRegion(region, RegionAccess::kReadWrite);
}

size_t CudaBackend::FirstNonFinite(const std::byte* values, MemorySpace space, DType dtype,
                                   size_t count) {
  // They come from the network and are in the host's cache.
  if (space == MemorySpace::kHost) return kvdepot::FirstNonFinite(values, dtype, count);
  if (!Enter()) return count;
  workspace_.arguments.Clear();
  const auto first = workspace_.arguments.Add<uint64_t>(1);
  uint64_t found = count;
  if (Ok(raw::FindNonFinite(values, dtype, count, first.device, workspace_.stream.get()),
         "checking values")) {
    ReadBytes(reinterpret_cast<const std::byte*>(first.device), sizeof(found),
              reinterpret_cast<std::byte*>(&found));
  }
  return found;
}

size_t CudaBackend::FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) {
  for (size_t done = 0; done < runs.size(); done += kFiniteRunsMax) {
    const size_t now = std::min(kFiniteRunsMax, runs.size() - done);
    if (!Enter()) return runs.size();
    workspace_.arguments.Clear();
    const auto arguments = workspace_.arguments.Add<raw::FiniteRun>(now);
    const auto first = workspace_.arguments.Add<uint64_t>(1);
    for (size_t i = 0; i < now; ++i) {
      const auto& [shape, run] = runs[done + i];
      const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
      arguments.host[i] = {run.data + static_cast<size_t>(run.first) * row_bytes,
                           static_cast<size_t>(run.capacity) * row_bytes,
                           2 * static_cast<uint32_t>(shape.kv_heads),
                           static_cast<uint32_t>(run.count) * static_cast<uint32_t>(row_bytes)};
    }
    uint64_t found = now;
    if (!Ok(workspace_.arguments.Upload(workspace_.stream)) ||
        !Ok(raw::FindNonFiniteRun(arguments.device, dtype, now, first.device,
                                  workspace_.stream.get()),
            "checking tokens")) {
      return runs.size();
    }
    ReadBytes(reinterpret_cast<const std::byte*>(first.device), sizeof(found),
              reinterpret_cast<std::byte*>(&found));
    if (found < now) return done + found;
  }
  return runs.size();
}

void CudaBackend::WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens,
                              int from, int count, std::byte* extent, int capacity,
                              int first_slot) {
  if (!Enter()) return;
  const size_t token_bytes = shape.row_values() * DTypeBytes(dtype);
  if (tokens.space == MemorySpace::kDevice) {
    const size_t offset = static_cast<size_t>(from) * token_bytes;
    Ok(ScatterTokens(shape, dtype, tokens.k + offset, tokens.v + offset, count, extent, capacity,
                     first_slot, workspace_.stream.get()),
       "writing tokens");
    return;
  }
  const int piece = static_cast<int>(workspace_.staging.slot_bytes() / (2 * token_bytes));
  KVDEPOT_CHECK(piece > 0);
  for (int done = 0; done < count; done += piece) {
    const int now = std::min(piece, count - done);
    const size_t tensor_bytes = static_cast<size_t>(now) * token_bytes;
    const size_t offset = static_cast<size_t>(from + done) * token_bytes;
    const absl::StatusOr<std::byte*> slot = workspace_.staging.Take();
    if (!Ok(slot.status())) return;
    memcpy(*slot, tokens.k + offset, tensor_bytes);
    memcpy(*slot + tensor_bytes, tokens.v + offset, tensor_bytes);
    // The kernel reads the slot itself: each byte once, and one launch less.
    const cudaError_t error = ScatterTokens(shape, dtype, *slot, *slot + tensor_bytes, now, extent,
                                            capacity, first_slot + done, workspace_.stream.get());
    if (!Ok(error, "writing tokens") || !Ok(workspace_.staging.Pass(workspace_.stream))) return;
  }
}

void CudaBackend::CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from,
                             std::byte* to, int capacity, int count) {
  if (!Enter()) return;
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
  const size_t tensor_bytes = static_cast<size_t>(capacity) * row_bytes;
  Ok(cudaMemcpy2DAsync(to, tensor_bytes, from, tensor_bytes, static_cast<size_t>(count) * row_bytes,
                       2 * static_cast<size_t>(shape.kv_heads), cudaMemcpyDeviceToDevice,
                       workspace_.stream.get()),
     "copying tokens");
}

const DeviceHead* CudaBackend::AddHeads(const LayerShape& shape,
                                        const LayerCalibration& calibration) {
  const auto heads = workspace_.arguments.Add<DeviceHead>(static_cast<size_t>(shape.kv_heads));
  FillDeviceHeads(shape, calibration, heads.host);
  return heads.device;
}

std::vector<LayerCalibration> CudaBackend::DeriveCalibrations(
    absl::Span<const CalibrationJob> jobs) {
  std::vector<std::vector<float>> variances;
  for (const CalibrationJob& job : jobs) variances.emplace_back(2 * job.source.shape.row_values());
  if (Enter())
    Ok(workspace_.segments.ChannelVariances(jobs, absl::MakeSpan(variances), workspace_.stream));
  std::vector<LayerCalibration> calibrations;
  for (size_t i = 0; i < jobs.size(); ++i) {
    calibrations.push_back(planes::CalibrationOf(jobs[i].source.shape, jobs[i].profile,
                                                 variances[i], jobs[i].query_second_moments));
  }
  return calibrations;
}

void CudaBackend::Encode(absl::Span<EncodeJob> jobs) {
  // Callers cut segments to their sizes whether or not the device has failed.
  for (EncodeJob& job : jobs) {
    job.size_bytes =
        SegmentBytes(job.source.shape, job.source.dtype, job.codec, job.calibration,
                     static_cast<int>(job.source.blocks.size()) * kBlockTokens, job.packkv);
  }
  if (Enter()) Ok(workspace_.segments.Encode(jobs, workspace_.stream));
}

absl::Status CudaBackend::Attend(absl::Span<const AttendItem> items) {
  if (!Enter()) return health();
  absl::Status status = attention_.Attend(items);
  if (absl::IsResourceExhausted(status)) {
    return absl::ResourceExhaustedError(absl::StrCat("device_memory: ", status.message()));
  }
  Ok(status);
  return status;
}

void CudaBackend::Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
                         absl::Span<const TokenRun> runs, DType to, MemorySpace space, std::byte* k,
                         std::byte* v) {
  if (!Enter()) return;
  const bool to_host = space == MemorySpace::kHost;
  const size_t token_bytes = shape.row_values() * DTypeBytes(to);
  const size_t tokens_max = to_host ? kDecodedBytes / token_bytes : SIZE_MAX;
  KVDEPOT_CHECK(tokens_max > 0);
  std::byte* const decoded_k = workspace_.decoded.data();
  std::byte* const decoded_v = decoded_k + kDecodedBytes;
  std::vector<DecodeRun> batch_runs;
  size_t batch_tokens = 0;
  size_t run = 0;
  int run_done = 0;
  while (run < runs.size()) {
    // As many runs, the last one perhaps in part, as there is room for.
    batch_runs.clear();
    batch_tokens = 0;
    DecodeBatch batch;
    while (run < runs.size() && batch_tokens < tokens_max && batch_runs.size() < kDecodeRunsMax) {
      TokenRun piece = runs[run];
      piece.first += run_done;
      piece.count = static_cast<int>(
          std::min(static_cast<size_t>(piece.count - run_done), tokens_max - batch_tokens));
      if (piece.count > 0) batch_runs.push_back({piece, batch_tokens});
      batch.run_tokens_max = std::max(batch.run_tokens_max, piece.count);
      batch_tokens += static_cast<size_t>(piece.count);
      run_done += piece.count;
      if (run_done == runs[run].count) {
        ++run;
        run_done = 0;
      }
    }
    workspace_.arguments.Clear();
    const auto arguments = workspace_.arguments.Add<DecodeRun>(batch_runs.size());
    std::copy(batch_runs.begin(), batch_runs.end(), arguments.host);
    batch.kv_heads = shape.kv_heads;
    batch.head_dim = shape.head_dim;
    batch.dtype = dtype;
    if (calibration != nullptr) batch.heads = AddHeads(shape, *calibration);
    batch.runs = arguments.device;
    batch.run_count = static_cast<int>(batch_runs.size());
    batch.to = to;
    batch.k = to_host ? decoded_k : k;
    batch.v = to_host ? decoded_v : v;
    if (!Ok(workspace_.arguments.Upload(workspace_.stream)) ||
        !Ok(DecodeRuns(batch, workspace_.stream.get()), "decoding") ||
        !Ok(workspace_.stream.Synchronize())) {
      return;
    }
    if (to_host) {
      memcpy(k, decoded_k, batch_tokens * token_bytes);
      memcpy(v, decoded_v, batch_tokens * token_bytes);
    }
    k += batch_tokens * token_bytes;
    v += batch_tokens * token_bytes;
  }
}

void CudaBackend::ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) {
  if (!Enter()) return;
  if (Ok(cudaMemcpyAsync(host, device, size_bytes, cudaMemcpyDeviceToHost, workspace_.stream.get()),
         "reading device memory")) {
    Ok(workspace_.stream.Synchronize());
  }
}

void CudaBackend::WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) {
  if (!Enter()) return;
  if (Ok(cudaMemcpyAsync(device, host, size_bytes, cudaMemcpyHostToDevice, workspace_.stream.get()),
         "writing device memory")) {
    Ok(workspace_.stream.Synchronize());
  }
}

absl::Status CudaBackend::VerifySegment(const std::byte* segment, size_t size_bytes,
                                        const SegmentGeometry& geometry) {
  if (!Enter()) return health();
  absl::Status status =
      workspace_.segments.Verify(segment, size_bytes, geometry, workspace_.stream);
  if (!absl::IsDataLoss(status)) Ok(status);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(const CudaBackendOptions& options) {
  absl::StatusOr<CudaDevice> device = OpenCudaDevice(options.device);
  if (!device.ok()) return device.status();
  absl::StatusOr<Workspace> workspace = Workspace::Create();
  if (!workspace.ok()) return workspace.status();
  absl::StatusOr<CudaAttention> attention = CudaAttention::Create(workspace->stream.get());
  if (!attention.ok()) return attention.status();
  return std::make_unique<CudaBackend>(*std::move(device), options, *std::move(workspace),
                                       *std::move(attention));
}

}  // namespace kvdepot
