#include "client/cli/process_facts.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "gpu/file_descriptor.h"

namespace kvdepot::cli {
namespace {

int ConnectError(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.data(), path.size());
  const FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return errno;
  return connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0
             ? 0
             : errno;
}

SocketFacts GatherSocketFacts(const std::string& target) {
  SocketFacts facts;
  absl::string_view path = target;
  if (!absl::ConsumePrefix(&path, "unix:")) return facts;
  // "unix:PATH" or "unix://ABSOLUTE_PATH".
  facts.path = std::string(absl::StripPrefix(path, "//"));
  struct stat info = {};
  if (stat(facts.path.c_str(), &info) != 0) {
    facts.stat_error = errno;
    return facts;
  }
  facts.is_socket = S_ISSOCK(info.st_mode);
  facts.owner = info.st_uid;
  facts.group = info.st_gid;
  facts.mode = info.st_mode & 0777;
  facts.connect_error = ConnectError(facts.path);
  return facts;
}

// As the CPU backend's slabs are made and mapped.
int SharedMemoryError() {
  constexpr size_t kBytes = 4096;
  const FileDescriptor memory(memfd_create("kvdepot-doctor", MFD_CLOEXEC));
  if (!memory || ftruncate(memory.get(), kBytes) != 0) return errno;
  void* const address = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0);
  if (address == MAP_FAILED) return errno;
  munmap(address, kBytes);
  return 0;
}

std::set<int> OpenableNodes() {
  std::set<int> nodes;
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/dev", error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    absl::string_view number = name;
    int minor = 0;
    if (absl::ConsumePrefix(&number, "nvidia") && absl::SimpleAtoi(number, &minor) &&
        access(entry->path().c_str(), R_OK | W_OK) == 0) {
      nodes.insert(minor);
    }
  }
  return nodes;
}

absl::optional<std::string> Variable(const char* name) {
  const char* const value = std::getenv(name);
  if (value == nullptr) return absl::nullopt;
  return std::string(value);
}

}  // namespace

ProcessFacts GatherProcessFacts(const std::string& target) {
  ProcessFacts facts;
  facts.user = geteuid();
  facts.pid = getpid();
  struct stat info = {};
  if (stat("/proc/self/ns/pid", &info) == 0) facts.pid_namespace = info.st_ino;
  facts.socket = GatherSocketFacts(target);
  const FileDescriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!pidfd) facts.pidfd_error = errno;
  facts.shared_memory_error = SharedMemoryError();
  facts.devices = ListNvidiaDevices("/");
  facts.nodes = OpenableNodes();
  facts.cuda_visible_devices = Variable("CUDA_VISIBLE_DEVICES");
  facts.cuda_device_order = Variable("CUDA_DEVICE_ORDER");
  facts.nvidia_visible_devices = Variable("NVIDIA_VISIBLE_DEVICES");
  return facts;
}

}  // namespace kvdepot::cli
