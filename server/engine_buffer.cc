#include "server/engine_buffer.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/engine_lease.h"

namespace kvdepot {
namespace {

absl::Status UnknownBuffer(uint64_t buffer) {
  return absl::NotFoundError(absl::StrCat("buffer: ", buffer, ", is not registered"));
}

// The lease, if it may have one more buffer, of that number.
absl::StatusOr<LeaseRecord*> FindLeaseWithRoom(EngineState* state, const Caller& caller,
                                               const BufferRequest& request)
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
  return lease;
}

}  // namespace

absl::Status RegisterBuffer(EngineState* state, const Caller& caller, BufferRequest request) {
  std::shared_ptr<LeasePeer> peer;
  {
    MutexLock lock(state->mu);
    const absl::StatusOr<LeaseRecord*> lease = FindLeaseWithRoom(state, caller, request);
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
  const BufferRef buffer = *std::move(mapped);
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindLeaseWithRoom(state, caller, request);
  if (!lease.ok()) return lease.status();
  (*lease)->buffers.emplace(request.buffer, buffer);
  return absl::OkStatus();
}

absl::Status UnregisterBuffer(EngineState* state, const Caller& caller, const std::string& lease_id,
                              uint64_t buffer) {
  // Unmapped without the lock.
  BufferRef unregistered;
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, lease_id);
  if (!lease.ok()) return lease.status();
  const auto found = (*lease)->buffers.find(buffer);
  if (found == (*lease)->buffers.end()) return UnknownBuffer(buffer);
  unregistered = std::move(found->second);
  (*lease)->buffers.erase(found);
  return absl::OkStatus();
}

absl::StatusOr<BufferRef> FindBuffer(EngineState* state, const Caller& caller,
                                     const std::string& lease_id, uint64_t buffer) {
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, lease_id);
  if (!lease.ok()) return lease.status();
  const auto found = (*lease)->buffers.find(buffer);
  if (found == (*lease)->buffers.end()) return UnknownBuffer(buffer);
  return found->second;
}

}  // namespace kvdepot
