#include "server/lease_table.h"

#include <utility>

#include "gpu/check.h"

namespace kvdepot {
namespace {

uint64_t BufferBytes(const LeaseRecord& lease) {
  uint64_t bytes = 0;
  for (const auto& [number, buffer] : lease.buffers) {
    if (!buffer.is_gone()) bytes += buffer.mapped_bytes;
  }
  return bytes;
}

}  // namespace

void LetGo::Add(const LeaseRecord::Shown& shown) {
  for (const auto& [version, directory] : shown.versions) directories.push_back(directory);
}

void Send(const UnmapRequests& requests) {
  for (const auto& [stream, session_ids] : requests) stream->OnUnmapWanted(session_ids);
}

LeaseRecord* LeaseTable::Find(const std::string& id) {
  const auto found = leases_.find(id);
  return found == leases_.end() ? nullptr : found->second.get();
}

LeaseRecord* LeaseTable::Find(const std::string& tenant, const std::string& id) {
  LeaseRecord* const lease = Find(id);
  return lease != nullptr && lease->tenant == tenant ? lease : nullptr;
}

void LeaseTable::Insert(std::unique_ptr<LeaseRecord> lease) {
  const std::string id = lease->id;
  KVDEPOT_CHECK(leases_.emplace(id, std::move(lease)).second);
}

void LeaseTable::Erase(const std::string& id, LetGo* let_go) {
  const auto found = leases_.find(id);
  for (auto& [session_id, shown] : found->second->shown) let_go->Add(shown);
  for (auto& [serial, slab] : found->second->slabs) let_go->slabs.push_back(std::move(slab.hold));
  for (auto& [number, buffer] : found->second->buffers) {
    let_go->buffers.push_back(std::move(buffer.memory));
  }
  leases_.erase(found);
}

size_t LeaseTable::OpenCountOf(const std::string& tenant) const {
  size_t count = 0;
  for (const auto& [id, lease] : leases_) count += lease->tenant == tenant && !lease->ended();
  return count;
}

std::vector<std::string> LeaseTable::Overdue(absl::Time now) const {
  std::vector<std::string> ids;
  for (const auto& [id, lease] : leases_) {
    if (!lease->ended() && now >= lease->deadline) ids.push_back(id);
  }
  return ids;
}

UnmapRequests LeaseTable::WantUnmapped(const std::string& tenant, absl::Time deadline) {
  UnmapRequests requests;
  for (const auto& [id, lease] : leases_) {
    if (lease->tenant != tenant || lease->ended() || !lease->unmap_asked.empty()) continue;
    for (const auto& [session_id, shown] : lease->shown) lease->unmap_asked.insert(session_id);
    if (lease->unmap_asked.empty()) continue;
    lease->unmap_deadline = deadline;
    requests.emplace_back(lease->stream, std::vector<std::string>(lease->unmap_asked.begin(),
                                                                  lease->unmap_asked.end()));
  }
  return requests;
}

UnmapRequests LeaseTable::UnmapRequestsFor(const std::string& session_id) const {
  UnmapRequests requests;
  for (const auto& [id, lease] : leases_) {
    if (lease->ended() || lease->shown.count(session_id) == 0) continue;
    requests.emplace_back(lease->stream, std::vector<std::string>{session_id});
  }
  return requests;
}

uint64_t LeaseTable::BufferBytesOf(const std::string& tenant) const {
  uint64_t bytes = 0;
  for (const auto& [id, lease] : leases_) {
    if (lease->tenant != tenant) continue;
    bytes += BufferBytes(*lease);
  }
  return bytes;
}

MappingUsage LeaseTable::usage() const {
  MappingUsage usage;
  for (const auto& [id, lease] : leases_) {
    usage.leases += !lease->ended();
    for (const auto& [serial, slab] : lease->slabs) usage.mapped_bytes += slab.size_bytes;
    usage.buffer_bytes += BufferBytes(*lease);
    for (const auto& [session_id, shown] : lease->shown) {
      for (const auto& [version, directory] : shown.versions) {
        usage.versions_held_back += version < shown.newest_version;
      }
    }
  }
  return usage;
}

}  // namespace kvdepot
