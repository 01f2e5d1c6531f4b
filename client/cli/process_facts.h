// What this process sees of the machine, as far as sharing memory with a daemon goes: a container
// often sees less of it than the daemon does.
#ifndef KVDEPOT_CLIENT_CLI_PROCESS_FACTS_H_
#define KVDEPOT_CLIENT_CLI_PROCESS_FACTS_H_

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/types/optional.h"
#include "gpu/nvidia_devices.h"

namespace kvdepot::cli {

struct SocketFacts {
  // Empty: the daemon is reached by TCP.
  std::string path;
  // Of stat and of connect, as errno; 0: they work. What follows only where stat does.
  int stat_error = 0;
  int connect_error = 0;
  bool is_socket = true;
  uid_t owner = 0;
  gid_t group = 0;
  mode_t mode = 0;
};

struct ProcessFacts {
  uid_t user = 0;
  pid_t pid = 0;
  // Inode number of /proc/self/ns/pid. 0: unknown.
  uint64_t pid_namespace = 0;
  SocketFacts socket;
  // errno of pidfd_open for this process, and of making and mapping shared memory. 0: they work.
  int pidfd_error = 0;
  int shared_memory_error = 0;
  std::vector<NvidiaDevice> devices;
  // Numbers of the nodes /dev/nvidiaN that this process may open.
  std::set<int> nodes;
  // Of the environment; nullopt: not set.
  absl::optional<std::string> cuda_visible_devices;
  absl::optional<std::string> cuda_device_order;
  absl::optional<std::string> nvidia_visible_devices;
};

// `target` as gRPC names it (target.h). Connects to its socket and says nothing there.
ProcessFacts GatherProcessFacts(const std::string& target);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_PROCESS_FACTS_H_
