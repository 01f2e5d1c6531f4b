#include "tests/integration/poisoning_backend.h"

#include <cstring>
#include <utility>

#include "tests/gpu/forwarding_backend.h"

namespace kvdepot {
namespace {

// NaN in fp32, fp16 and bf16.
constexpr int kPoison = 0xFF;

class PoisonedExtent final : public Extent {
 public:
  PoisonedExtent(std::unique_ptr<Extent> extent, bool on_device)
      : Extent(extent->data(), extent->size_bytes(), extent->place()),
        extent_(std::move(extent)),
        on_device_(on_device) {}
  ~PoisonedExtent() override { PoisonBehind(0); }

 private:
  void GiveBackBehind(size_t size_bytes) override {
    PoisonBehind(size_bytes);
    extent_->Shrink(size_bytes);
  }
  void PoisonBehind(size_t offset) {
    if (on_device_) {
      FillDeviceMemory(data() + offset, size_bytes() - offset, kPoison);
    } else {
      std::memset(data() + offset, kPoison, size_bytes() - offset);
    }
  }

  const std::unique_ptr<Extent> extent_;
  const bool on_device_;
};

class PoisoningBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  absl::StatusOr<std::unique_ptr<Extent>> Allocate(const std::string& tenant, ExtentUse use,
                                                   size_t size_bytes) override {
    absl::StatusOr<std::unique_ptr<Extent>> extent =
        ForwardingBackend::Allocate(tenant, use, size_bytes);
    if (!extent.ok()) return extent;
    return std::make_unique<PoisonedExtent>(*std::move(extent), name() == "cuda");
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakePoisoningBackend(const BackendOptions& options) {
  absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(options);
  if (!backend.ok()) return backend;
  return std::make_unique<PoisoningBackend>(*std::move(backend));
}

}  // namespace kvdepot
