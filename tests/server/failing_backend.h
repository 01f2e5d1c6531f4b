// A backend on the CPU whose device can be made to fail.
#ifndef KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_
#define KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "gpu/backend.h"

namespace kvdepot {

class FailingBackend final : public Backend {
 public:
  // `failed` outlives the backend. While it is true the device has failed.
  explicit FailingBackend(const std::atomic<bool>* failed) : failed_(failed) {}

  std::string name() const override { return cpu_->name(); }
  std::string device() const override { return cpu_->device(); }
  absl::Status health() const override {
    return *failed_ ? absl::InternalError("cuda: it broke") : absl::OkStatus();
  }
  uint64_t memory_bytes() const override { return cpu_->memory_bytes(); }

  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes) override {
    return cpu_->Allocate(tenant, use, size_bytes);
  }
  absl::Status CheckFinite(absl::string_view field, const std::byte* values, DType dtype,
                           size_t value_count) override {
    return cpu_->CheckFinite(field, values, dtype, value_count);
  }
  void WriteTokens(const LayerShape& shape, DType dtype, const HostTokens& tokens, int from,
                   int count, std::byte* extent, int capacity, int first_slot) override {
    cpu_->WriteTokens(shape, dtype, tokens, from, count, extent, capacity, first_slot);
  }
  void CopyTokens(const LayerShape& shape, DType dtype, const std::byte* from, std::byte* to,
                  int capacity, int count) override {
    cpu_->CopyTokens(shape, dtype, from, to, capacity, count);
  }
  LayerCalibration DeriveCalibration(const SealBlocks& source, Profile profile,
                                     absl::Span<const float> query_second_moments) override {
    return cpu_->DeriveCalibration(source, profile, query_second_moments);
  }
  bool Encode(const SealBlocks& source, Codec codec, const LayerCalibration* calibration,
              std::byte* segment) override {
    return cpu_->Encode(source, codec, calibration, segment);
  }
  absl::Status Attend(absl::Span<const AttendItem> items) override { return cpu_->Attend(items); }
  void Decode(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
              absl::Span<const TokenRun> runs, DType to, std::byte* k, std::byte* v) override {
    cpu_->Decode(shape, dtype, calibration, runs, to, k, v);
  }
  void ReadBytes(const std::byte* device, size_t size_bytes, std::byte* host) override {
    cpu_->ReadBytes(device, size_bytes, host);
  }
  void WriteBytes(const std::byte* host, size_t size_bytes, std::byte* device) override {
    cpu_->WriteBytes(host, size_bytes, device);
  }
  absl::Status VerifyChecksum(const std::byte* segment, size_t size_bytes) override {
    return cpu_->VerifyChecksum(segment, size_bytes);
  }

 private:
  const std::atomic<bool>* const failed_;
  const std::unique_ptr<Backend> cpu_ = MakeCpuBackend(1);
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_FAILING_BACKEND_H_
