#include "tests/integration/shown_memory.h"

#include <cstring>
#include <utility>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

class HostMemory final : public ShownMemory {
 public:
  explicit HostMemory(std::unique_ptr<RegisteredBuffer> buffer) : buffer_(std::move(buffer)) {}

  RegisteredBuffer& buffer() override { return *buffer_; }
  void Write(size_t offset, const std::string& bytes) override {
    std::memcpy(buffer_->data() + offset, bytes.data(), bytes.size());
  }
  std::string Read(size_t offset, size_t size_bytes) override {
    return {reinterpret_cast<const char*>(buffer_->data()) + offset, size_bytes};
  }

 private:
  const std::unique_ptr<RegisteredBuffer> buffer_;
};

}  // namespace

std::unique_ptr<ShownMemory> ShownMemory::Make(const std::shared_ptr<Lease>& lease,
                                               size_t size_bytes) {
  if (!lease->device().empty()) return MakeCudaMemory(lease, size_bytes);
  auto buffer = RegisteredBuffer::OfHost(lease, size_bytes, absl::Now() + absl::Seconds(20));
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? std::make_unique<HostMemory>(*std::move(buffer)) : nullptr;
}

}  // namespace kvdepot
