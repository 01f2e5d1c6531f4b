#include "client/staging_pool.h"

#include <utility>

namespace kvdepot {
namespace {

// Buffers grow in steps, so that one serves for a session that grows.
size_t Rounded(size_t size_bytes) {
  size_t rounded = size_t{64} << 10;
  while (rounded < size_bytes) rounded *= 2;
  return rounded;
}

}  // namespace

absl::StatusOr<std::shared_ptr<PinnedBuffer>> StagingPool::Take(size_t size_bytes) {
  absl::StatusOr<PinnedBuffer> buffer = absl::NotFoundError("");
  {
    const std::lock_guard<std::mutex> lock(spare_->mutex);
    for (PinnedBuffer& spare : spare_->buffers) {
      if (spare.size_bytes() < size_bytes) continue;
      std::swap(spare, spare_->buffers.back());
      buffer = std::move(spare_->buffers.back());
      spare_->buffers.pop_back();
      break;
    }
  }
  if (!buffer.ok()) buffer = PinnedBuffer::Allocate(Rounded(size_bytes));
  if (!buffer.ok()) return buffer.status();
  return std::shared_ptr<PinnedBuffer>(new PinnedBuffer(*std::move(buffer)),
                                       [spare = spare_](PinnedBuffer* used) {
                                         const std::lock_guard<std::mutex> lock(spare->mutex);
                                         spare->buffers.push_back(std::move(*used));
                                         delete used;
                                       });
}

}  // namespace kvdepot
