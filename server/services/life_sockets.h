// The life sockets of leases: who is at the other end, whether it still lives, and what it is sent.
//
//   process          daemon
//   connect -------> accepted
//   hello, pidfd --> IdentifyPeer, Engine::AttachLease
//            <------ slabs with their descriptors, as MapSession and Commit need them
//   released ------> Engine::ReleaseLease
//   (ends) --------> pidfd readable AND end of file: Engine::ReleaseLease
//
// End of file alone says nothing: a process may close its socket and still map, and what it had
// queued on a GPU may still run. The pidfd alone says too little: a child may have inherited socket
// and mappings.
#ifndef KVDEPOT_SERVER_SERVICES_LIFE_SOCKETS_H_
#define KVDEPOT_SERVER_SERVICES_LIFE_SOCKETS_H_

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "gpu/file_descriptor.h"
#include "server/engine.h"
#include "server/engine_observer.h"
#include "server/unix_socket.h"

namespace kvdepot {

class LifeSockets {
 public:
  // Listens on a Unix socket at `path`, mode 0600; serves from a thread of its own. `engine` and
  // `observer` outlive this. FAILED_PRECONDITION naming the path.
  static absl::StatusOr<std::unique_ptr<LifeSockets>> Start(const std::string& path, Engine* engine,
                                                            EngineObserver* observer);
  // Closes all. Leases are left as they are: the engine is about to end.
  ~LifeSockets();
  LifeSockets(const LifeSockets&) = delete;
  LifeSockets& operator=(const LifeSockets&) = delete;

  const std::string& path() const { return path_; }

 private:
  struct Connection;

  LifeSockets(std::string path, Engine* engine, EngineObserver* observer, UnixSocketClaim claim,
              FileDescriptor listener, FileDescriptor wake);

  void Run();
  void Accept();
  // False: the connection is over.
  bool Serve(Connection* connection, bool hung_up);
  bool Greet(Connection* connection, FileDescriptor pidfd, const std::string& lease_id);

  const std::string path_;
  Engine* const engine_;
  // Is told whom this could not identify.
  EngineObserver* const observer_;
  const UnixSocketClaim claim_;
  const FileDescriptor listener_;
  const FileDescriptor wake_;
  // Of the thread alone.
  std::vector<std::unique_ptr<Connection>> connections_;
  std::thread thread_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_LIFE_SOCKETS_H_
