#include "client/cli/process_checks.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace kvdepot::cli {
namespace {

constexpr absl::string_view kMigPrefix = "MIG-";

template <typename... Parts>
absl::Status Wrong(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat(parts...));
}

// "NAME=value", or that it is not set.
std::string Shown(absl::string_view name, const absl::optional<std::string>& value) {
  return value.has_value() ? absl::StrCat(name, "=", *value) : absl::StrCat(name, " is not set");
}

// Whether CUDA_VISIBLE_DEVICES leaves the device to this process; nullopt: the numbers in it cannot
// be told apart without CUDA.
absl::optional<bool> IsLeftVisible(const ProcessFacts& facts, const std::string& uuid) {
  if (!facts.cuda_visible_devices.has_value()) return true;
  const bool ordered =
      facts.devices.size() == 1 || facts.cuda_device_order.value_or("") == "PCI_BUS_ID";
  for (const absl::string_view entry : absl::StrSplit(*facts.cuda_visible_devices, ',')) {
    if (absl::StartsWith(entry, "GPU-")) {
      // It may be cut short.
      if (absl::StartsWith(uuid, entry)) return true;
      continue;
    }
    // CUDA looks no further than to the first entry that names nothing.
    int index = -1;
    if (!absl::SimpleAtoi(entry, &index) || index < 0) return false;
    // The driver's files may be hidden where the devices are not.
    if (facts.devices.empty()) return absl::nullopt;
    if (static_cast<size_t>(index) >= facts.devices.size()) return false;
    if (!ordered) return absl::nullopt;
    if (facts.devices[static_cast<size_t>(index)].uuid == uuid) return true;
  }
  return false;
}

absl::StatusOr<std::string> CheckMig(const ProcessFacts& facts, const std::string& uuid,
                                     bool is_cut) {
  const std::string own = facts.cuda_visible_devices.value_or("");
  const bool own_is_instance = absl::StartsWith(own, kMigPrefix);
  if (absl::StartsWith(uuid, kMigPrefix) && own_is_instance && own != uuid) {
    return Wrong("the daemon has the MIG instance ", uuid, ", this process ", own,
                 ": memory is not shared between instances, give both the same one");
  }
  if (own_is_instance) return absl::StrCat("the MIG instance ", own);
  if (!is_cut && !absl::StartsWith(uuid, kMigPrefix)) return std::string();
  return Wrong(uuid, " is cut into MIG instances, and memory is not shared between them: set ",
               "CUDA_VISIBLE_DEVICES to the daemon's MIG-UUID, here and there; ",
               Shown("CUDA_VISIBLE_DEVICES", facts.cuda_visible_devices));
}

}  // namespace

Finding CheckSocket(const ProcessFacts& facts) {
  const SocketFacts& socket = facts.socket;
  const std::string& path = socket.path;
  if (path.empty()) return "none: the daemon is reached by TCP, nothing can be mapped";
  if (socket.stat_error == ENOENT) {
    return Misconfigured(absl::StrCat(path, " does not exist here"),
                         "start the daemon (kvdepotd), name its socket with --target, or share the "
                         "folder of its socket with this container, under the same path");
  }
  if (socket.stat_error != 0) {
    return Misconfigured(
        absl::StrCat(path, ": ", std::strerror(socket.stat_error)),
        absl::StrCat("let user ", facts.user, " search the folders on the way to it (chmod +x)"));
  }
  if (!socket.is_socket) {
    return Misconfigured(absl::StrCat(path, " is no socket"),
                         "name the path of the daemon's --listen with --target");
  }
  if (socket.connect_error == EACCES || socket.connect_error == EPERM) {
    return Misconfigured(
        absl::StrCat(path, " is user ", socket.owner, "'s and group ", socket.group, "'s, mode ",
                     absl::StrFormat("%04o", socket.mode), ", and this process is user ",
                     facts.user),
        (socket.mode & 0060) == 0060
            ? absl::StrCat("put user ", facts.user, " into group ", socket.group,
                           " (supplementalGroups)")
            : absl::StrCat("run it as user ", socket.owner, " (runAsUser), or start the daemon ",
                           "with --socket_mode=0660 and --socket_group=GROUP"));
  }
  if (socket.connect_error == ECONNREFUSED) {
    return Misconfigured(
        absl::StrCat("nobody listens on ", path, ": the daemon that made it has ended"),
        "start it again; the last line of its log says why it ended");
  }
  if (socket.connect_error != 0) {
    return absl::UnavailableError(
        absl::StrCat(path, ": connect: ", std::strerror(socket.connect_error)));
  }
  return absl::StrCat(path, " of user ", socket.owner);
}

Finding CheckProcess(const ProcessFacts& facts, const v1::GetServerInfoResponse& info) {
  if (facts.pidfd_error != 0) {
    return Wrong("pidfd_open: ", std::strerror(facts.pidfd_error),
                 facts.pidfd_error == ENOSYS ? ": a kernel of 5.3 or newer is needed, and " : ": ",
                 "the container's seccomp profile must allow pidfd_open");
  }
  if (facts.shared_memory_error != 0) {
    return Wrong("shared memory: ", std::strerror(facts.shared_memory_error),
                 ": the container's seccomp profile must allow memfd_create and mmap, and its "
                 "memory limit leave some");
  }
  const v1::DaemonProcess& daemon = info.process();
  if (daemon.pid() == 0 || daemon.pid_namespace() == 0 || facts.pid_namespace == 0) {
    return absl::StrCat("process ", facts.pid);
  }
  if (daemon.pid_namespace() == facts.pid_namespace) {
    return absl::StrCat("process ", facts.pid, ", in the daemon's PID namespace");
  }
  const std::string found = absl::StrCat("process ", facts.pid, ", in another PID namespace than ",
                                         "the daemon, which is process ", daemon.pid(), " there");
  if (daemon.pid() != static_cast<uint32_t>(facts.pid)) return found;
  return absl::StrCat(found, ": CUDA takes equal numbers for one process and refuses legacy IPC ",
                      "handles; leave slabs to descriptors, or share the namespace (hostPID, ",
                      "shareProcessNamespace)");
}

Finding CheckDevice(const ProcessFacts& facts, const v1::GetServerInfoResponse& info) {
  if (info.backend() != "cuda") {
    if (facts.nodes.empty()) return "host memory, which any process may map";
    return Doubtful(
        absl::StrCat("the daemon computes on the CPU, and /dev/nvidia", *facts.nodes.begin(),
                     " is here"),
        "start it where it may open that, with --device=cuda:0: --device=auto takes the CPU where "
        "it sees no device node. Nothing to do if the CPU is meant");
  }
  const std::string& uuid = info.device();
  const std::string container = Shown("NVIDIA_VISIBLE_DEVICES", facts.nvidia_visible_devices);
  if (facts.devices.empty() && facts.nodes.empty()) {
    return Wrong("no GPU in this container, ", container, ": give it the daemon's, ", uuid,
                 " (docker run --gpus, NVIDIA_VISIBLE_DEVICES)");
  }
  const auto device =
      std::find_if(facts.devices.begin(), facts.devices.end(),
                   [&uuid](const NvidiaDevice& entry) { return entry.uuid == uuid; });
  const bool is_instance = absl::StartsWith(uuid, kMigPrefix);
  if (device == facts.devices.end() && !facts.devices.empty() && !is_instance) {
    const std::string shown =
        absl::StrJoin(facts.devices, ", ",
                      [](std::string* out, const NvidiaDevice& entry) { out->append(entry.uuid); });
    return Wrong(uuid, ", the daemon's, is hidden from this process, which sees ", shown, "; ",
                 container, ", which must name it");
  }
  const bool is_cut = device != facts.devices.end() && device->mig;
  absl::StatusOr<std::string> mig = CheckMig(facts, uuid, is_cut);
  if (!mig.ok() || !mig->empty()) return mig;
  if (device != facts.devices.end() && device->minor >= 0 &&
      facts.nodes.count(device->minor) == 0) {
    return Wrong("/dev/nvidia", device->minor, " of ", uuid, " cannot be opened by user ",
                 facts.user,
                 ": let the container have it (docker run --gpus, NVIDIA_VISIBLE_DEVICES)");
  }
  const absl::optional<bool> visible = IsLeftVisible(facts, uuid);
  if (!visible.has_value()) {
    return absl::StrCat(uuid, "; whether CUDA_VISIBLE_DEVICES=", *facts.cuda_visible_devices,
                        " is that one cannot be told from numbers: name the UUID");
  }
  if (!*visible) {
    return Wrong("CUDA_VISIBLE_DEVICES=", *facts.cuda_visible_devices,
                 " hides the daemon's device: add ", uuid);
  }
  return uuid;
}

}  // namespace kvdepot::cli
