#include "gpu/segments_cuda.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "gpu/check.h"
#include "gpu/checksum_cuda.h"
#include "gpu/cuda_status.h"
#include "gpu/device_head.h"
#include "gpu/packkv/cuda_support.h"
#include "gpu/packkv/encode_cuda.h"
#include "gpu/planes/encode_cuda.h"
#include "gpu/raw/segment_cuda.h"
#include "gpu/segment_header_cuda.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// The smallest block of a head (64 tokens, head_dim 64, bf16) is 16 KiB: so kEncodeBytesMax is at
// most 8192 heads of 544 bytes, in as many jobs of two arrays; arrays are rounded up to 256 bytes.
constexpr size_t kArgumentsBytes = size_t{16} << 20;
// A raw segment of 1024 tokens and 1024 heads of 256 in fp32.
constexpr size_t kSegmentBytesMax = (size_t{2} << 30) + 4096;
// Variances of the largest layer, 1024 heads of 256.
constexpr size_t kResultsBytes = size_t{2} << 20;

int TokensOf(const SealBlocks& source) {
  return static_cast<int>(source.blocks.size()) * kBlockTokens;
}

// Of `packkv` at most.
size_t BytesOf(const EncodeJob& job) {
  return SegmentBytes(job.source.shape, job.source.dtype, job.codec, job.calibration,
                      TokensOf(job.source), job.packkv);
}

bool AreAlike(const SealBlocks& a, const SealBlocks& b) {
  return a.dtype == b.dtype && a.shape.kv_heads == b.shape.kv_heads &&
         a.shape.head_dim == b.shape.head_dim;
}

SegmentBatch BatchOf(const SealBlocks& source) {
  SegmentBatch batch;
  batch.kv_heads = source.shape.kv_heads;
  batch.head_dim = source.shape.head_dim;
  batch.dtype = source.dtype;
  return batch;
}

}  // namespace

absl::StatusOr<CudaSegments> CudaSegments::Create() {
  CudaSegments made;
  absl::Status status;
  const auto take = [&status](auto made_part, auto* part) {
    if (!made_part.ok()) status.Update(made_part.status());
    if (made_part.ok()) *part = *std::move(made_part);
  };
  take(KernelArguments::Create(kArgumentsBytes), &made.arguments_);
  take(DeviceBuffer::Allocate(ChecksumWorkspaceBytes(1, kSegmentBytesMax)), &made.checksum_);
  take(DeviceBuffer::Allocate(kResultsBytes), &made.results_);
  take(PinnedBuffer::Allocate(kResultsBytes), &made.host_results_);
  if (!status.ok()) return status;
  // What no kernel has written is read all the same: the flags of raw jobs, which mean nothing.
  status = CudaStatus(cudaMemset(made.results_.data(), 0, kResultsBytes), "clearing results");
  if (!status.ok()) return status;
  return made;
}

std::vector<CudaSegments::Launch> CudaSegments::Divide(absl::Span<const EncodeJob> jobs) const {
  std::vector<Launch> launches;
  for (size_t first = 0; first < jobs.size();) {
    Launch launch;
    launch.batch = BatchOf(jobs[first].source);
    size_t end = first;
    for (; end < jobs.size(); ++end) {
      if (jobs[end].codec != jobs[first].codec) break;
      if (jobs[first].codec == Codec::kPackKv && !(jobs[end].packkv == jobs[first].packkv)) break;
      if (!AreAlike(jobs[first].source, jobs[end].source)) break;
      const size_t size_bytes_max = std::max(launch.batch.size_bytes_max, BytesOf(jobs[end]));
      const int count = static_cast<int>(end - first) + 1;
      // One job always fits.
      if (ChecksumWorkspaceBytes(count, size_bytes_max) > checksum_.size_bytes()) break;
      launch.batch.size_bytes_max = size_bytes_max;
      launch.batch.block_count_max =
          std::max(launch.batch.block_count_max, static_cast<int>(jobs[end].source.blocks.size()));
    }
    launch.jobs = jobs.subspan(first, end - first);
    launch.batch.job_count = static_cast<int>(launch.jobs.size());
    launches.push_back(launch);
    first = end;
  }
  return launches;
}

const std::byte* const* CudaSegments::AddBlocks(const SealBlocks& source) {
  const auto blocks = arguments_.Add<const std::byte*>(source.blocks.size());
  std::copy(source.blocks.begin(), source.blocks.end(), blocks.host);
  return blocks.device;
}

void CudaSegments::AddJobs(Launch* launch) {
  const auto jobs = arguments_.Add<SegmentJob>(launch->jobs.size());
  // Segments of one layer follow each other.
  const LayerCalibration* last = nullptr;
  const DeviceHead* heads = nullptr;
  for (size_t i = 0; i < launch->jobs.size(); ++i) {
    const EncodeJob& from = launch->jobs[i];
    SegmentJob& job = jobs.host[i];
    job = {};
    job.blocks = AddBlocks(from.source);
    job.block_count = static_cast<uint32_t>(from.source.blocks.size());
    job.segment = from.segment;
    job.size_bytes = BytesOf(from);
    if (from.codec != Codec::kPlanes) continue;
    KVDEPOT_CHECK(from.calibration != nullptr);
    const LayerCalibration& calibration = *from.calibration;
    if (&calibration != last) {
      last = &calibration;
      const auto added =
          arguments_.Add<DeviceHead>(static_cast<size_t>(from.source.shape.kv_heads));
      FillDeviceHeads(from.source.shape, calibration, added.host);
      heads = added.device;
    }
    job.heads = heads;
    std::copy(calibration.hash_prefix.begin(), calibration.hash_prefix.end(), job.calibration_hash);
  }
  launch->batch.jobs = jobs.device;
}

absl::Status CudaSegments::QueueBodies(const Launch& launch, uint32_t* out_of_range,
                                       uint64_t* body_bytes, const Stream& stream) {
  const packkv::Options& options = launch.jobs[0].packkv;
  const size_t workspace_bytes = packkv::EncodeWorkspaceBytes(launch.batch, options);
  absl::Status status;
  if (bodies_.size_bytes() < workspace_bytes) {
    // What is queued may work with the one before.
    status = stream.Synchronize();
    if (!status.ok()) return status;
    absl::StatusOr<DeviceBuffer> larger = DeviceBuffer::Allocate(workspace_bytes);
    if (!larger.ok()) return larger.status();
    bodies_ = *std::move(larger);
  }
  const size_t header_bytes = SegmentHeaderBytes(launch.batch.kv_heads);
  status = CudaStatus(packkv::EncodeBodies(launch.batch, options, header_bytes, out_of_range,
                                           body_bytes, bodies_.data(), stream.get()),
                      "encoding packkv bodies");
  if (status.ok()) {
    status = CudaStatus(SetSegmentSizes(launch.batch, header_bytes, body_bytes, stream.get()),
                        "setting sizes of segments");
  }
  if (status.ok()) {
    status = CudaStatus(
        WriteHeaders(launch.batch, Codec::kPackKv, /*out_of_range=*/nullptr, stream.get()),
        "writing headers");
  }
  if (!status.ok()) return status;
  return CudaStatus(WriteChecksums(launch.batch.jobs, launch.batch.job_count,
                                   launch.batch.size_bytes_max, checksum_.data(), stream.get()),
                    "writing checksums");
}

absl::Status CudaSegments::Queue(const Launch& launch, uint32_t* out_of_range, uint64_t* body_bytes,
                                 const Stream& stream) {
  if (launch.jobs[0].codec == Codec::kPackKv)
    return QueueBodies(launch, out_of_range, body_bytes, stream);
  if (launch.jobs[0].codec == Codec::kRaw) {
    return CudaStatus(raw::EncodeSegments(launch.batch, checksum_.data(), stream.get()),
                      "encoding raw segments");
  }
  return CudaStatus(
      planes::EncodeSegments(launch.batch, out_of_range, checksum_.data(), stream.get()),
      "encoding planes segments");
}

absl::StatusOr<const std::byte*> CudaSegments::ReadResults(size_t size_bytes,
                                                           const Stream& stream) {
  absl::Status status =
      CudaStatus(cudaMemcpyAsync(host_results_.data(), results_.data(), size_bytes,
                                 cudaMemcpyDeviceToHost, stream.get()),
                 "reading results");
  if (status.ok()) status = stream.Synchronize();
  if (!status.ok()) return status;
  return host_results_.data();
}

absl::Status CudaSegments::Encode(absl::Span<EncodeJob> jobs, const Stream& stream) {
  constexpr size_t kJobResultBytes = sizeof(uint64_t) + sizeof(uint32_t);
  KVDEPOT_CHECK(jobs.size() * kJobResultBytes <= results_.size_bytes());
  std::vector<Launch> launches = Divide(jobs);
  arguments_.Clear();
  for (Launch& launch : launches) AddJobs(&launch);
  absl::Status status = arguments_.Upload(stream);
  // A length of a body a job, which `packkv` sets, then a flag a job; a raw job's means nothing.
  auto* body_bytes = reinterpret_cast<uint64_t*>(results_.data());
  auto* out_of_range = reinterpret_cast<uint32_t*>(body_bytes + jobs.size());
  for (const Launch& launch : launches) {
    if (!status.ok()) return status;
    status = Queue(launch, out_of_range, body_bytes, stream);
    body_bytes += launch.jobs.size();
    out_of_range += launch.jobs.size();
  }
  if (!status.ok()) return status;
  const absl::StatusOr<const std::byte*> read = ReadResults(jobs.size() * kJobResultBytes, stream);
  if (!read.ok()) return read.status();
  const auto* const lengths = reinterpret_cast<const uint64_t*>(*read);
  const auto* const flags = reinterpret_cast<const uint32_t*>(lengths + jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    jobs[i].in_range = jobs[i].codec == Codec::kRaw || flags[i] == 0;
    if (jobs[i].codec == Codec::kPackKv && jobs[i].in_range)
      jobs[i].size_bytes = SegmentHeaderBytes(jobs[i].source.shape.kv_heads) + lengths[i];
  }
  return absl::OkStatus();
}

absl::Status CudaSegments::ChannelVariances(absl::Span<const CalibrationJob> jobs,
                                            absl::Span<std::vector<float>> variances,
                                            const Stream& stream) {
  for (size_t first = 0; first < jobs.size();) {
    SegmentBatch batch = BatchOf(jobs[first].source);
    const size_t size_bytes = variances[first].size() * sizeof(float);
    size_t end = first;
    for (; end < jobs.size() && AreAlike(jobs[first].source, jobs[end].source); ++end) {
      if ((end - first + 1) * size_bytes > results_.size_bytes()) break;
      batch.block_count_max =
          std::max(batch.block_count_max, static_cast<int>(jobs[end].source.blocks.size()));
    }
    arguments_.Clear();
    const auto arguments = arguments_.Add<SegmentJob>(end - first);
    for (size_t i = first; i < end; ++i) {
      SegmentJob& job = arguments.host[i - first];
      job = {};
      job.blocks = AddBlocks(jobs[i].source);
      job.block_count = static_cast<uint32_t>(jobs[i].source.blocks.size());
    }
    batch.jobs = arguments.device;
    batch.job_count = static_cast<int>(end - first);
    absl::Status status = arguments_.Upload(stream);
    if (!status.ok()) return status;
    status = CudaStatus(
        planes::ChannelVariances(batch, reinterpret_cast<float*>(results_.data()), stream.get()),
        "measuring channels");
    if (!status.ok()) return status;
    const absl::StatusOr<const std::byte*> read = ReadResults((end - first) * size_bytes, stream);
    if (!read.ok()) return read.status();
    for (size_t i = first; i < end; ++i) {
      memcpy(variances[i].data(), *read + (i - first) * size_bytes, size_bytes);
    }
    first = end;
  }
  return absl::OkStatus();
}

absl::Status CudaSegments::Verify(const std::byte* segment, size_t size_bytes,
                                  const SegmentGeometry& geometry, const Stream& stream) {
  KVDEPOT_CHECK(size_bytes % 8 == 0 && size_bytes <= kSegmentBytesMax);
  arguments_.Clear();
  const auto job = arguments_.Add<SegmentJob>(1);
  *job.host = {};
  job.host->segment = const_cast<std::byte*>(segment);  // only read
  job.host->size_bytes = size_bytes;
  absl::Status status = arguments_.Upload(stream);
  // The results: the checksum, then the header.
  constexpr size_t kChecksumBytes = sizeof(uint64_t);
  const size_t first_bytes = std::min(size_bytes, kSegmentHeaderBytesMax);
  if (status.ok()) {
    status = CudaStatus(
        ComputeChecksums(job.device, 1, size_bytes, reinterpret_cast<uint64_t*>(results_.data()),
                         checksum_.data(), stream.get()),
        "computing a checksum");
  }
  if (status.ok()) {
    status = CudaStatus(cudaMemcpyAsync(results_.data() + kChecksumBytes, segment, first_bytes,
                                        cudaMemcpyDeviceToDevice, stream.get()),
                        "reading a header");
  }
  if (!status.ok()) return status;
  const absl::StatusOr<const std::byte*> read = ReadResults(kChecksumBytes + first_bytes, stream);
  if (!read.ok()) return read.status();
  uint64_t checksum;
  memcpy(&checksum, *read, sizeof(checksum));
  status = ValidateSegment({*read + kChecksumBytes, first_bytes}, size_bytes, checksum);
  if (status.ok()) status = CheckGeometry(SegmentView::Of(*read + kChecksumBytes), geometry);
  if (!status.ok() || geometry.codec != Codec::kPackKv) return status;
  // Its body leads readers from place to place.
  std::vector<uint64_t> words(size_bytes / sizeof(uint64_t));
  status = CudaStatus(
      cudaMemcpyAsync(words.data(), segment, size_bytes, cudaMemcpyDeviceToHost, stream.get()),
      "reading a segment");
  if (status.ok()) status = stream.Synchronize();
  if (!status.ok()) return status;
  const std::byte* const copy = reinterpret_cast<const std::byte*>(words.data());
  status = ValidateSegment({copy, size_bytes});
  if (!status.ok()) return status;
  return packkv::CheckReadableOnCuda(geometry.head_dim,
                                     SegmentView::Of(copy).packkv_body().header());
}

}  // namespace kvdepot
