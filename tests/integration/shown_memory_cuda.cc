#include <cuda_runtime_api.h>

#include <cstring>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"
#include "tests/integration/shown_memory.h"

namespace kvdepot {
namespace {

// In the middle of its allocation, as tensors of a caching allocator are.
constexpr size_t kBefore = 4096;

class CudaMemory final : public ShownMemory {
 public:
  explicit CudaMemory(size_t size_bytes) : array_(kBefore + size_bytes) { array_.Fill(0xFF); }

  absl::Status Register(const std::shared_ptr<Lease>& lease) {
    auto buffer = RegisteredBuffer::OfDevice(
        lease, array_.data() + kBefore, array_.size() - kBefore, absl::Now() + absl::Seconds(20));
    if (buffer.ok()) buffer_ = *std::move(buffer);
    return buffer.status();
  }

  RegisteredBuffer& buffer() override { return *buffer_; }
  void Write(size_t offset, const std::string& bytes) override {
    EXPECT_EQ(
        cudaMemcpy(buffer_->data() + offset, bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
        cudaSuccess);
  }
  std::string Read(size_t offset, size_t size_bytes) override {
    std::string bytes(size_bytes, '\0');
    EXPECT_EQ(cudaMemcpy(&bytes[0], buffer_->data() + offset, size_bytes, cudaMemcpyDeviceToHost),
              cudaSuccess);
    return bytes;
  }

 private:
  DeviceArray<char> array_;
  std::unique_ptr<RegisteredBuffer> buffer_;
};

}  // namespace

std::unique_ptr<ShownMemory> MakeCudaMemory(const std::shared_ptr<Lease>& lease,
                                            size_t size_bytes) {
  auto memory = std::make_unique<CudaMemory>(size_bytes);
  const absl::Status registered = memory->Register(lease);
  EXPECT_TRUE(registered.ok()) << registered;
  return registered.ok() ? std::move(memory) : nullptr;
}

}  // namespace kvdepot
