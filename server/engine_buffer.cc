#include "server/engine_buffer.h"

#include <algorithm>
#include <iterator>
#include <map>
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
                                               const BufferRequest& request)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(state->mu) {
  absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, request.lease_id);
  if (!lease.ok()) return lease;
  std::map<uint64_t, LeaseRecord::Buffer>& buffers = (*lease)->buffers;
  for (auto buffer = buffers.begin(); buffer != buffers.end();) {
    buffer = buffer->second.is_gone() ? buffers.erase(buffer) : std::next(buffer);
  }
  if (buffers.count(request.buffer) > 0) {
    return absl::AlreadyExistsError(absl::StrCat("buffer: ", request.buffer, ", is registered"));
  }
  const size_t buffers_max = static_cast<size_t>(state->options.buffers_per_lease_max);
  if (buffers.size() >= buffers_max) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "buffers_per_lease_max: ", buffers.size(), " of ", buffers_max, " buffers are registered"));
  }
  const uint64_t bytes_max = state->options.buffer_bytes_per_tenant_max;
  const uint64_t bytes = state->leases.BufferBytesOf(caller.tenant);
  if (request.region.size_bytes > bytes_max - std::min(bytes, bytes_max)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("buffer_bytes_per_tenant_max: ", bytes, " of ", bytes_max,
                     " bytes are mapped, ", request.region.size_bytes, " more are too many"));
  }
  return lease;
}

absl::StatusOr<std::shared_ptr<RegisteredMemory>> MapShown(EngineState* state, LeasePeer* peer,
                                                           BufferRequest request) {
  if (request.region.kind == RegionKind::kSharedMemory) {
    absl::StatusOr<FileDescriptor> descriptor = peer->TakeDescriptor(request.buffer);
    if (!descriptor.ok()) return descriptor.status();
    request.region.descriptor = *std::move(descriptor);
  }
  absl::StatusOr<std::unique_ptr<MappedRegion>> mapped =
      state->backend->MapBuffer(std::move(request.region));
  if (!mapped.ok()) return mapped.status();
  return std::make_shared<RegisteredMemory>(*std::move(mapped), request.offset);
}

}  // namespace

absl::Status RegisterBuffer(EngineState* state, const Caller& caller, BufferRequest request) {
  const std::string lease_id = request.lease_id;
  const uint64_t number = request.buffer;
  std::shared_ptr<LeasePeer> peer;
  {
    MutexLock lock(state->mu);
    const absl::StatusOr<LeaseRecord*> lease = FindLeaseWithRoom(state, caller, request);
    if (!lease.ok()) return lease.status();
    peer = (*lease)->peer;
    (*lease)->buffers[number].mapped_bytes = request.region.size_bytes;
  }
  // Without the lock: a driver takes its time.
  absl::StatusOr<std::shared_ptr<RegisteredMemory>> memory =
      MapShown(state, peer.get(), std::move(request));
  MutexLock lock(state->mu);
  // It waits for its process, which may have gone.
  LeaseRecord* const lease = state->leases.Find(caller.tenant, lease_id);
  absl::Status status = memory.status();
  if (status.ok()) status = FindUsableLease(state, caller.tenant, lease_id).status();
  if (status.ok()) {
    lease->buffers[number].memory = *std::move(memory);
  } else if (lease != nullptr) {
    lease->buffers.erase(number);
  }
  return status;
}

void UnregisterBuffer(EngineState* state, const Caller& caller, const std::string& lease_id,
                      uint64_t buffer, std::function<void(const absl::Status&)> done) {
  // Let go of, and perhaps unmapped, without the lock.
  std::shared_ptr<RegisteredMemory> memory;
  absl::Status status;
  {
    MutexLock lock(state->mu);
    // Its right may have ended: what it has shown is mapped still.
    LeaseRecord* const lease = state->leases.Find(caller.tenant, lease_id);
    if (lease == nullptr) {
      status = absl::NotFoundError(absl::StrCat("lease_id: ", lease_id, ", unknown"));
    } else if (const auto found = lease->buffers.find(buffer);
               found == lease->buffers.end() || found->second.is_gone()) {
      status = UnknownBuffer(buffer);
    } else if (found->second.is_ending) {
      // Once more, as the answer to the first attempt may have been lost.
      memory = found->second.ending.lock();
      if (memory == nullptr) status = UnknownBuffer(buffer);
    } else if (found->second.memory == nullptr) {
      status = absl::UnavailableError(absl::StrCat("buffer: ", buffer, ", is being registered"));
    } else {
      memory = std::move(found->second.memory);
      found->second.memory = nullptr;
      found->second.ending = memory;
      found->second.is_ending = true;
    }
  }
  if (!status.ok()) return done(status);
  memory->CallWhenUnmapped([done = std::move(done)] { done(absl::OkStatus()); });
}

absl::StatusOr<BufferRef> FindBuffer(EngineState* state, const Caller& caller,
                                     const std::string& lease_id, uint64_t buffer) {
  MutexLock lock(state->mu);
  const absl::StatusOr<LeaseRecord*> lease = FindUsableLease(state, caller.tenant, lease_id);
  if (!lease.ok()) return lease.status();
  const auto found = (*lease)->buffers.find(buffer);
  if (found == (*lease)->buffers.end() || found->second.memory == nullptr) {
    return UnknownBuffer(buffer);
  }
  return BufferRef(found->second.memory);
}

}  // namespace kvdepot
