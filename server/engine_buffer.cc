#include "server/engine_buffer.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine_lease.h"

namespace kvdepot {
namespace {

absl::Status UnknownBuffer(uint64_t buffer) {
  return absl::NotFoundError(absl::StrCat("buffer: ", buffer, ", is not registered"));
}

// The lease, if it may have one more buffer, of that number and size.
absl::StatusOr<LeaseRecord*> FindLeaseWithRoom(EngineState* state, const Caller& caller,
                                               const BufferRequest& request, uint64_t size_bytes)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
  absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, request.lease_id);
  if (!lease.ok()) return lease;
  const size_t count = (*lease)->buffers.size();
  const size_t buffers_max = static_cast<size_t>(state->options.buffers_per_lease_max);
  if ((*lease)->buffers.count(request.buffer) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("buffer: ", request.buffer, ", is registered"));
  }
  if (count >= buffers_max) {
    return absl::ResourceExhaustedError(absl::StrCat("buffers_per_lease_max: ", count, " of ",
                                                     buffers_max, " buffers are registered"));
  }
  const uint64_t bytes_max = state->options.buffer_bytes_per_tenant_max;
  const uint64_t bytes = state->leases.BufferBytesOf(caller.tenant);
  if (size_bytes > bytes_max - std::min(bytes, bytes_max)) {
    return absl::ResourceExhaustedError(absl::StrCat("buffer_bytes_per_tenant_max: ", bytes, " of ",
                                                     bytes_max, " bytes are registered, ",
                                                     size_bytes, " more are too many"));
  }
  return lease;
}

}  // namespace

absl::Status RegisterBuffer(EngineState* state, const Caller& caller, BufferRequest request) {
  const uint64_t size_bytes = request.region.size_bytes - request.offset;
  std::shared_ptr<LeasePeer> peer;
  {
    MutexLock lock(state->mu);
    const absl::StatusOr<LeaseRecord*> lease =
        FindLeaseWithRoom(state, caller, request, size_bytes);
    if (!lease.ok()) return lease.status();
    peer = (*lease)->peer;
  }
  if (request.region.kind == RegionKind::kSharedMemory) {
    absl::StatusOr<FileDescriptor> descriptor = peer->TakeDescriptor(request.buffer);
    if (!descriptor.ok()) return descriptor.status();
    request.region.descriptor = *std::move(descriptor);
  }
  // Without the lock: a driver takes its time.
  absl::StatusOr<std::unique_ptr<MappedRegion>> mapped =
      state->backend->MapBuffer(std::move(request.region));
  if (!mapped.ok()) return mapped.status();
  auto buffer = std::make_shared<RegisteredMemory>(*std::move(mapped), request.offset);
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindLeaseWithRoom(state, caller, request, size_bytes);
  if (!lease.ok()) return lease.status();
  (*lease)->buffers.emplace(request.buffer, std::move(buffer));
  return absl::OkStatus();
}

void UnregisterBuffer(EngineState* state, const Caller& caller, const std::string& lease_id,
                      uint64_t buffer, std::function<void(const absl::Status&)> done) {
  // Let go of, and perhaps unmapped, without the lock.
  std::shared_ptr<RegisteredMemory> unregistered;
  absl::Status status;
  {
    MutexLock lock(state->mu);
    // Its right may have ended: what it has shown is mapped still.
    LeaseRecord* const lease = state->leases.Find(caller.tenant, lease_id);
    if (lease == nullptr) {
      status = absl::NotFoundError(absl::StrCat("lease_id: ", lease_id, ", unknown"));
    } else if (const auto found = lease->buffers.find(buffer); found == lease->buffers.end()) {
      status = UnknownBuffer(buffer);
    } else {
      unregistered = std::move(found->second);
      lease->buffers.erase(found);
    }
  }
  if (!status.ok()) return done(status);
  unregistered->set_on_unmapped([done = std::move(done)] { done(absl::OkStatus()); });
}

absl::StatusOr<BufferRef> FindBuffer(EngineState* state, const Caller& caller,
                                     const std::string& lease_id, uint64_t buffer) {
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, lease_id);
  if (!lease.ok()) return lease.status();
  const auto found = (*lease)->buffers.find(buffer);
  if (found == (*lease)->buffers.end()) return UnknownBuffer(buffer);
  return BufferRef(found->second);
}

}  // namespace kvdepot
