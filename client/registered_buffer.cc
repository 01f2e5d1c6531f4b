#include "client/registered_buffer.h"

#include <utility>

#include "absl/time/clock.h"
#include "gpu/device_slab.h"
#include "gpu/shared_memory.h"

namespace kvdepot {
namespace {

constexpr absl::Duration kUnregisterTimeout = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<RegisteredBuffer>> RegisteredBuffer::OfHost(
    std::shared_ptr<Lease> lease, size_t size_bytes, absl::Time deadline) {
  if (size_bytes == 0) return absl::InvalidArgumentError("size_bytes: 0, must be at least 1");
  absl::StatusOr<std::unique_ptr<SlabMemory>> memory =
      MakeSharedMemory(size_bytes, ExtentUse::kTail);
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<IpcRegion> region = (*memory)->Export();
  if (!region.ok()) return region.status();
  std::unique_ptr<RegisteredBuffer> buffer(
      new RegisteredBuffer(std::move(lease), (*memory)->data(), size_bytes));
  buffer->memory_ = *std::move(memory);
  return Register(std::move(buffer), *region, 0, deadline);
}

absl::StatusOr<std::unique_ptr<RegisteredBuffer>> RegisteredBuffer::OfDevice(
    std::shared_ptr<Lease> lease, void* data, size_t size_bytes, absl::Time deadline) {
  const absl::StatusOr<ExportedMemory> memory = ExportDeviceMemory(data, size_bytes);
  if (!memory.ok()) return memory.status();
  std::unique_ptr<RegisteredBuffer> buffer(
      new RegisteredBuffer(std::move(lease), static_cast<std::byte*>(data), size_bytes));
  return Register(std::move(buffer), memory->region, memory->offset, deadline);
}

absl::StatusOr<std::unique_ptr<RegisteredBuffer>> RegisteredBuffer::Register(
    std::unique_ptr<RegisteredBuffer> buffer, const IpcRegion& region, size_t offset,
    absl::Time deadline) {
  const absl::StatusOr<uint64_t> number =
      buffer->lease_->RegisterBuffer(region, offset, buffer->size_bytes_, deadline);
  if (!number.ok()) return number.status();
  buffer->number_ = *number;
  buffer->is_registered_ = true;
  return buffer;
}

RegisteredBuffer::~RegisteredBuffer() {
  Unregister(absl::Now() + kUnregisterTimeout).IgnoreError();
}

absl::Status RegisteredBuffer::Unregister(absl::Time deadline) {
  if (!is_registered_) return absl::OkStatus();
  absl::Status status = lease_->UnregisterBuffer(number_, deadline);
  is_registered_ = !status.ok();
  return status;
}

v1::BufferRange RegisteredBuffer::Range(size_t offset, size_t size_bytes) const {
  v1::BufferRange range;
  range.set_lease_id(lease_->id());
  range.set_epoch(lease_->epoch());
  range.set_buffer(number_);
  range.set_offset(offset);
  range.set_size_bytes(size_bytes);
  return range;
}

}  // namespace kvdepot
