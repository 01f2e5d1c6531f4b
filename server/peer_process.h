// The process at the other end of a Unix socket, and when it is gone.
#ifndef KVDEPOT_SERVER_PEER_PROCESS_H_
#define KVDEPOT_SERVER_PEER_PROCESS_H_

#include "absl/status/statusor.h"
#include "gpu/file_descriptor.h"

namespace kvdepot {

// A pidfd of the process that connected `socket`: readable once that process has ended. `claimed`
// is the descriptor that it sent of itself. INVALID_ARGUMENT naming pidfd: `claimed` is no pidfd,
// or another process's. FAILED_PRECONDITION: this kernel cannot tell, because the process is in a
// PID namespace that we do not see (before Linux 6.9).
//
// Who connected is what the kernel noted then, so a process that inherits a socket, or is handed
// one, cannot pass for its owner.
absl::StatusOr<FileDescriptor> IdentifyPeer(int socket, FileDescriptor claimed);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_PEER_PROCESS_H_
