// Hands every call to another backend: what test doubles begin with.
#ifndef KVDEPOT_TESTS_GPU_FORWARDING_BACKEND_H_
#define KVDEPOT_TESTS_GPU_FORWARDING_BACKEND_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "gpu/backend.h"

namespace kvdepot {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> to) : to_(std::move(to)) {}

  std::string name() const override { return to_->name(); }
  std::string device() const override { return to_->device(); }
  absl::Status health() const override { return to_->health(); }
  absl::Status Supports(const LayerShape& shape, DType dtype, Codec codec,
                        const packkv::Options& packkv) const override {
    return to_->Supports(shape, dtype, codec, packkv);
  }
  uint64_t memory_bytes() const override { return to_->memory_bytes(); }
  void SetBudget(uint64_t budget_bytes) override { to_->SetBudget(budget_bytes); }
  SlabUsage slab_usage() const override { return to_->slab_usage(); }
  absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) override {
    return to_->ExportSlab(serial);
  }
  absl::StatusOr<std::unique_ptr<MappedRegion>> MapBuffer(IpcRegion region) override {
    return to_->MapBuffer(std::move(region));
  }

  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes) override {
    return to_->Allocate(tenant, use, size_bytes);
  }
  size_t FirstNonFinite(const std::byte* values, MemorySpace space, DType dtype,
                        size_t count) override {
    return to_->FirstNonFinite(values, space, dtype, count);
  }
  size_t FirstNonFiniteRun(DType dtype, absl::Span<const WrittenRun> runs) override {
    return to_->FirstNonFiniteRun(dtype, runs);
  }
  void WriteTokens(const LayerShape& shape, DType dtype, const DenseTokens& tokens, int from,
                   int count, std::byte* extent, int capacity, int first_slot) override {
    to_->WriteTokens(shape, dtype, tokens, from, count, extent, capacity, first_slot);
  }
  void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from, std::byte* to,
                  int capacity, int count) override {
    to_->CopyTokens(shape, dtype, from, to, capacity, count);
  }
  std::vector<LayerCalibration> DeriveCalibrations(absl::Span<const CalibrationJob> jobs) override {
    return to_->DeriveCalibrations(jobs);
  }
  size_t encode_bytes_max() const override { return to_->encode_bytes_max(); }
  void Encode(absl::Span<EncodeJob> jobs) override { to_->Encode(jobs); }
  absl::Status Attend(absl::Span<const AttendItem> items) override { return to_->Attend(items); }
  void Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
              absl::Span<const TokenRun> runs, DType to, MemorySpace space, std::byte* k,
              std::byte* v) override {
    to_->Decode(shape, dtype, calibration, runs, to, space, k, v);
  }
  void Synchronize() override { to_->Synchronize(); }
  void ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) override {
    to_->ReadBytes(device, size_bytes, host);
  }
  void WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) override {
    to_->WriteBytes(host, size_bytes, device);
  }
  absl::Status VerifySegment(const std::byte* segment, size_t size_bytes,
                             const SegmentGeometry& geometry) override {
    return to_->VerifySegment(segment, size_bytes, geometry);
  }

 private:
  const std::unique_ptr<Backend> to_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_FORWARDING_BACKEND_H_
