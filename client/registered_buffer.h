// Memory of this process that the daemon reads and writes in place: tensors of Append, Attend,
// Decode and Fetch go through it instead of through messages.
//
//   auto buffer = kvdepot::RegisteredBuffer::OfDevice(lease, device_pointer, size_bytes, deadline);
//   *request.mutable_k_range() = (*buffer)->Range(0, k_bytes);   // v1::FetchRequest
//
// A call finds its inputs as they are when it is made, complete; its outputs are there when it has
// answered. Whatever a GPU was asked to do with the memory before must be done by then.
#ifndef KVDEPOT_CLIENT_REGISTERED_BUFFER_H_
#define KVDEPOT_CLIENT_REGISTERED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/lease.h"
#include "gpu/slab_pool.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace kvdepot {

class RegisteredBuffer {
 public:
  // New host memory of that size, for a daemon on a CPU. Errors as those of the daemon's
  // RegisterBuffer, here and below.
  static absl::StatusOr<std::unique_ptr<RegisteredBuffer>> OfHost(std::shared_ptr<Lease> lease,
                                                                  size_t size_bytes,
                                                                  absl::Time deadline);
  // The caller's memory from cudaMalloc, on the daemon's GPU, aligned to 16 bytes; it stays the
  // caller's. The daemon maps all of the allocation that it lies in, and uses this part alone.
  // FAILED_PRECONDITION: it is none of such memory.
  static absl::StatusOr<std::unique_ptr<RegisteredBuffer>> OfDevice(std::shared_ptr<Lease> lease,
                                                                    void* data, size_t size_bytes,
                                                                    absl::Time deadline);
  // Unregister, waiting up to five seconds.
  ~RegisteredBuffer();
  RegisteredBuffer(const RegisteredBuffer&) = delete;
  RegisteredBuffer& operator=(const RegisteredBuffer&) = delete;

  // Ends the buffer. OK: the daemon touches the memory no more, and the caller may give it back;
  // that includes calls whose deadline has passed and which the daemon goes on with. Another
  // status (DEADLINE_EXCEEDED, or UNAVAILABLE while no daemon answers): it may still; try again.
  absl::Status Unregister(absl::Time deadline);

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

  // `offset` is a multiple of 16; the daemon checks that the range is within the buffer.
  v1::BufferRange Range(size_t offset, size_t size_bytes) const;

 private:
  RegisteredBuffer(std::shared_ptr<Lease> lease, std::byte* data, size_t size_bytes)
      : lease_(std::move(lease)), data_(data), size_bytes_(size_bytes) {}

  static absl::StatusOr<std::unique_ptr<RegisteredBuffer>> Register(
      std::unique_ptr<RegisteredBuffer> buffer, const IpcRegion& region, size_t offset,
      absl::Time deadline);

  const std::shared_ptr<Lease> lease_;
  std::byte* const data_;
  const size_t size_bytes_;
  // Of OfHost.
  std::unique_ptr<SlabMemory> memory_;
  bool is_registered_ = false;
  uint64_t number_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_REGISTERED_BUFFER_H_
