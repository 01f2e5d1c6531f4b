// Leases: which processes may map sessions, and what they have been shown.
//
//   open ----------------> ended ----------------> gone
//     stream's messages      its process lives:      all it was shown is free
//                            nothing is reused
//
// A lease's *right* ends with its stream. What its process was *shown*, directories and slabs,
// stays held until the process says that it has let go of it, or is gone (life_sockets.h).
#ifndef KVDEPOT_SERVER_LEASE_TABLE_H_
#define KVDEPOT_SERVER_LEASE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gpu/slab_pool.h"
#include "server/directory.h"
#include "server/mapping_types.h"
#include "server/session.h"

namespace kvdepot {

struct LeaseRecord {
  // What the process was shown of one session.
  struct Shown {
    // Weak: a session that was deleted goes, but for what directories hold.
    std::weak_ptr<Session> session;
    // Not retired, by version.
    std::map<uint64_t, DirectoryRef> versions;
    uint64_t newest_version = 0;
  };
  struct MappedSlab {
    std::unique_ptr<SlabHold> hold;
    uint64_t size_bytes = 0;
  };

  // Memory that the process shows.
  struct Buffer {
    // What of the daemon's addresses it takes.
    uint64_t mapped_bytes = 0;
    // Null until it is mapped, and once it is being unregistered.
    std::shared_ptr<RegisteredMemory> memory;
    // From then on, for as long as calls hold it.
    std::weak_ptr<RegisteredMemory> ending;
    bool is_ending = false;

    bool is_gone() const { return is_ending && ending.expired(); }
  };

  std::string id;
  std::string tenant;
  // Null once the right has ended.
  std::shared_ptr<LeaseStream> stream;
  // Null until the process' life socket is there.
  std::shared_ptr<LeasePeer> peer;
  // When the right ends without a further message.
  absl::Time deadline;
  std::map<std::string, Shown> shown;
  std::map<uint64_t, MappedSlab> slabs;
  // Its own memory, by its own numbers.
  std::map<uint64_t, Buffer> buffers;
  // Sessions that it was asked to unmap, for want of memory, and has not; until when it may take.
  std::set<std::string> unmap_asked;
  absl::Time unmap_deadline;

  bool ended() const { return stream == nullptr; }
};

// What leases held and let go of. Destroyed by the caller without its lock: freeing takes time.
struct LetGo {
  std::vector<DirectoryRef> directories;
  std::vector<std::unique_ptr<SlabHold>> slabs;
  std::vector<BufferRef> buffers;

  void Add(const LeaseRecord::Shown& shown);
};

// Whom to ask to unmap which sessions.
using UnmapRequests =
    std::vector<std::pair<std::shared_ptr<LeaseStream>, std::vector<std::string>>>;

// Without the engine's lock.
void Send(const UnmapRequests& requests);

struct MappingUsage {
  uint64_t leases = 0;
  // Over all leases: what is mapped twice counts twice.
  uint64_t mapped_bytes = 0;
  // Directories that a lease has not retired though it was shown a newer one.
  uint64_t versions_held_back = 0;
  // Of all leases.
  uint64_t buffer_bytes = 0;
};

// Not thread-safe: the engine's lock guards it.
class LeaseTable {
 public:
  // Null: no such lease of this tenant.
  LeaseRecord* Find(const std::string& tenant, const std::string& id);
  LeaseRecord* Find(const std::string& id);

  void Insert(std::unique_ptr<LeaseRecord> lease);
  // All that it holds goes to `let_go`.
  void Erase(const std::string& id, LetGo* let_go);

  // Leases whose right has not ended.
  size_t OpenCountOf(const std::string& tenant) const;
  // Ids of those without a message until `now`.
  std::vector<std::string> Overdue(absl::Time now) const;
  // Marks all that the tenant's leases map as wanted until `deadline`. Leases that have been asked
  // and have not done it yet are not asked again.
  UnmapRequests WantUnmapped(const std::string& tenant, absl::Time deadline);
  // Those that map the session.
  UnmapRequests UnmapRequestsFor(const std::string& session_id) const;
  // Mapped for all buffers of the tenant's leases.
  uint64_t BufferBytesOf(const std::string& tenant) const;

  const std::map<std::string, std::unique_ptr<LeaseRecord>>& all() const { return leases_; }

  MappingUsage usage() const;

 private:
  std::map<std::string, std::unique_ptr<LeaseRecord>> leases_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_LEASE_TABLE_H_
