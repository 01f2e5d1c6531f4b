// This process's right to map sessions of one daemon.
//
//   auto lease = kvdepot::Lease::Open(target, {}, absl::Now() + absl::Seconds(5));
//   auto session = kvdepot::MappedSession::Open(*lease, session_id, options, deadline);
//
// A thread of its own sends signs of life. When the lease ends, because the daemon has ended, or
// this process was stopped for longer than the daemon waits, calls on it say so: UNAVAILABLE while
// no daemon answers, FAILED_PRECONDITION naming both epochs once a daemon that was started since
// does. What is mapped stays readable and never changes any more; open another lease and map anew.
// Nothing maps past the lease's own end: sessions hold it.
//
// Thread-safe. Calls that answer with directories go one after the other.
#ifndef KVDEPOT_CLIENT_LEASE_H_
#define KVDEPOT_CLIENT_LEASE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/mapped_directory.h"
#include "kvdepot/v1/kv_depot_service.pb.h"

namespace kvdepot {

// Of directories and life sockets; the daemon must have the same.
inline constexpr uint32_t kMappedLayoutVersion = 1;

class Lease {
 public:
  // `target` as Client::Connect's, of a daemon on this machine. FAILED_PRECONDITION: it has another
  // layout version (both are named), or no Unix socket. UNAVAILABLE: its life socket cannot be
  // reached. RESOURCE_EXHAUSTED naming leases_per_tenant_max.
  static absl::StatusOr<std::shared_ptr<Lease>> Open(const std::string& target,
                                                     const Client::Options& options,
                                                     absl::Time deadline);
  virtual ~Lease() = default;

  virtual const std::string& id() const = 0;
  virtual uint64_t epoch() const = 0;
  // UUID of the GPU whose memory sessions are; empty: host memory.
  virtual const std::string& device() const = 0;
  // OK, or why it has ended: UNAVAILABLE where the daemon has gone.
  virtual absl::Status status() const = 0;
  // Sessions that the daemon has asked to unmap so far.
  virtual bool IsUnmapWanted(const std::string& session_id) const = 0;

  // What MappedSession asks. Slabs that the answers name are mapped when these return.
  virtual absl::StatusOr<v1::MapSessionResponse> Map(v1::MapSessionRequest request,
                                                     absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::CommitResponse> Commit(v1::CommitRequest request,
                                                    absl::Time deadline) = 0;
  virtual absl::StatusOr<v1::Session> Truncate(v1::TruncateSessionRequest request,
                                               absl::Time deadline) = 0;
  virtual absl::Status Unmap(const std::string& session_id, absl::Time deadline) = 0;
  // No directory of the session below `version` is in use. Does not wait for an answer.
  virtual void Retire(const std::string& session_id, uint64_t version) = 0;
  // Null: not mapped.
  virtual RegionRef Region(uint64_t serial) const = 0;

  // What RegisteredBuffer asks: shows memory of this process to the daemon, of which the buffer is
  // a part, and returns the buffer's number. Where no answer comes in time it is unregistered
  // again, which may take up to five seconds more.
  virtual absl::StatusOr<uint64_t> RegisterBuffer(const IpcRegion& memory, size_t offset,
                                                  size_t size_bytes, absl::Time deadline) = 0;
  // OK: the daemon touches it no more, or another one answers by now. UNAVAILABLE: none answers.
  // Also once the lease has ended.
  virtual absl::Status UnregisterBuffer(uint64_t buffer, absl::Time deadline) = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_LEASE_H_
