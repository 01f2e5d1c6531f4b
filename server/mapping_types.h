// What calls on mapped sessions carry, without protobuf and gRPC.
#ifndef KVDEPOT_SERVER_MAPPING_TYPES_H_
#define KVDEPOT_SERVER_MAPPING_TYPES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/ipc_region.h"
#include "server/session_types.h"

namespace kvdepot {

// The stream over which a lease was opened. Called from any thread, without a lock held; must not
// block.
class LeaseStream {
 public:
  virtual ~LeaseStream() = default;
  // The process' life socket is accepted.
  virtual void OnAttached() = 0;
  // It should unmap these sessions.
  virtual void OnUnmapWanted(const std::vector<std::string>& session_ids) = 0;
  // The lease's right has ended, for this reason. The last call.
  virtual void OnEnded(const absl::Status& reason) = 0;
};

// A slab as its receiver is told of it.
struct SlabNotice {
  uint64_t serial = 0;
  uint64_t size_bytes = 0;
  bool writable = false;
  RegionKind kind = RegionKind::kSharedMemory;
  std::string device;
  std::string handle;  // as IpcRegion's
};

// The other end of a life socket. Thread-safe; must not block.
class LeasePeer {
 public:
  virtual ~LeasePeer() = default;
  // UNAVAILABLE: it has gone. RESOURCE_EXHAUSTED: it does not take what was sent before.
  virtual absl::Status SendSlab(const SlabNotice& notice, const IpcRegion& region) = 0;
  // What it has sent for the buffer of that number. NOT_FOUND: nothing.
  virtual absl::StatusOr<FileDescriptor> TakeDescriptor(uint64_t buffer) = 0;
};

struct MapRequest {
  std::string lease_id;
  std::string session_id;
  bool write = false;
  // 0: none.
  uint64_t have_version = 0;
  // 0: as before, at first EngineOptions::room_tokens.
  uint64_t room_tokens = 0;
};

struct CommitRequest {
  std::string lease_id;
  std::string session_id;
  uint64_t generation = 0;
  uint64_t token_count = 0;
  uint64_t have_version = 0;
  uint64_t room_tokens = 0;
};

struct BufferRequest {
  std::string lease_id;
  uint64_t buffer = 0;
  // What is shown; without the descriptor, which the lease's peer has.
  IpcRegion region;
  // Where in it the buffer begins, which goes to its end; less than its size.
  uint64_t offset = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_MAPPING_TYPES_H_
