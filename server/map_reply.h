// The answer to MapSession and Commit.
#ifndef KVDEPOT_SERVER_MAP_REPLY_H_
#define KVDEPOT_SERVER_MAP_REPLY_H_

#include <vector>

#include "absl/types/optional.h"
#include "server/directory.h"
#include "server/mapping_types.h"
#include "server/session_types.h"

namespace kvdepot {

struct MapReply {
  // Unless the caller has a directory already.
  absl::optional<SessionInfo> session;
  // Null: the caller has the newest.
  DirectoryRef directory;
  // What the caller has, which the answer may leave out. Null: nothing.
  DirectoryRef base;
  // Whether the caller is told of the directory's room.
  bool for_writer = false;
  // Whose descriptors were sent to the lease's peer.
  std::vector<SlabNotice> slabs;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_MAP_REPLY_H_
