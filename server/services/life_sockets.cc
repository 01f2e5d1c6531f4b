#include "server/services/life_sockets.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "gpu/descriptor_packet.h"
#include "kvdepot/v1/mapping.pb.h"
#include "server/mutex.h"
#include "server/peer_process.h"
#include "server/services/mapping_convert.h"

namespace kvdepot {
namespace {

// For a connection that says nothing.
constexpr absl::Duration kHelloTimeout = absl::Seconds(5);
// Connections without a hello; one more takes the oldest one's place.
constexpr size_t kStrangersMax = 64;
constexpr int kBacklog = 64;
// Read in one go, whatever a client sends.
constexpr int kBufferPacketsMax = 16;

bool IsRegularFile(const FileDescriptor& descriptor) {
  struct stat info = {};
  return fstat(descriptor.get(), &info) == 0 && S_ISREG(info.st_mode);
}

// The socket of one lease's process, as the engine sees it.
class Peer final : public LeasePeer {
 public:
  explicit Peer(FileDescriptor socket) : socket_(std::move(socket)) {}
  int socket() const { return socket_.get(); }

  // The next packet but for those that show buffers, which are kept. Errors as ReceivePacket.
  absl::StatusOr<DescriptorPacket> Receive() {
    MutexLock lock(mutex_);
    if (!unread_.has_value()) return Next();
    absl::StatusOr<DescriptorPacket> packet = *std::move(unread_);
    unread_.reset();
    return packet;
  }

  absl::Status SendSlab(const SlabNotice& notice, const IpcRegion& region) override {
    v1::LifeServerMessage message;
    ToProto(notice, message.mutable_slab());
    return SendPacket(socket_.get(), message.SerializeAsString(), region.descriptor.get());
  }

  // Its packet was sent before the call that asks, but the sockets' thread may not have read it.
  absl::StatusOr<FileDescriptor> TakeDescriptor(uint64_t buffer) override {
    MutexLock lock(mutex_);
    if (!unread_.has_value()) {
      absl::StatusOr<DescriptorPacket> packet = Next();
      if (packet.ok()) unread_ = *std::move(packet);
    }
    if (!shown_descriptor_ || shown_buffer_ != buffer) {
      return absl::NotFoundError(
          absl::StrCat("buffer: ", buffer, ", no descriptor came for it over the life socket"));
    }
    return std::move(shown_descriptor_);
  }

 private:
  absl::StatusOr<DescriptorPacket> Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (int i = 0; i < kBufferPacketsMax; ++i) {
      absl::StatusOr<DescriptorPacket> packet = ReceivePacket(socket_.get());
      if (!packet.ok()) return packet;
      v1::LifeClientMessage message;
      if (!message.ParseFromString(packet->bytes) || !message.has_buffer()) return packet;
      shown_buffer_ = message.buffer().buffer();
      shown_descriptor_ = FileDescriptor();
      // Of another kind it is closed now, before its sender can make that take long.
      if (IsRegularFile(packet->descriptor)) shown_descriptor_ = std::move(packet->descriptor);
    }
    return absl::UnavailableError("life_socket: other work has its turn");
  }

  const FileDescriptor socket_;
  Mutex mutex_;
  // Read by TakeDescriptor, for Receive.
  absl::optional<DescriptorPacket> unread_ ABSL_GUARDED_BY(mutex_);
  // The last one that came and was not taken.
  uint64_t shown_buffer_ ABSL_GUARDED_BY(mutex_) = 0;
  FileDescriptor shown_descriptor_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

struct LifeSockets::Connection {
  std::shared_ptr<Peer> peer;
  absl::Time hello_deadline;
  // Both empty before the hello.
  std::string lease_id;
  FileDescriptor pidfd;
  bool at_end = false;
  bool process_ended = false;
};

absl::StatusOr<std::unique_ptr<LifeSockets>> LifeSockets::Start(const std::string& path,
                                                                Engine* engine,
                                                                EngineObserver* observer) {
  absl::StatusOr<UnixSocketClaim> claim = ClaimUnixSocket(path);
  if (!claim.ok()) return claim.status();
  FileDescriptor listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  FileDescriptor wake(eventfd(0, EFD_CLOEXEC));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const OwnerOnlyUmask owner_only;
  if (!listener || !wake ||
      bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener.get(), kBacklog) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("listen: ", path, ": ", std::strerror(errno)));
  }
  std::unique_ptr<LifeSockets> sockets(new LifeSockets(path, engine, observer, *std::move(claim),
                                                       std::move(listener), std::move(wake)));
  sockets->thread_ = std::thread([self = sockets.get()] { self->Run(); });
  return sockets;
}

LifeSockets::LifeSockets(std::string path, Engine* engine, EngineObserver* observer,
                         UnixSocketClaim claim, FileDescriptor listener, FileDescriptor wake)
    : path_(std::move(path)),
      engine_(engine),
      observer_(observer),
      claim_(std::move(claim)),
      listener_(std::move(listener)),
      wake_(std::move(wake)) {}

LifeSockets::~LifeSockets() {
  const uint64_t one = 1;
  if (thread_.joinable() && write(wake_.get(), &one, sizeof(one)) == sizeof(one)) thread_.join();
  unlink(path_.c_str());
}

void LifeSockets::Run() {
  for (;;) {
    // A socket at its end and a process that has ended stay so: they are not asked again.
    std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    absl::Time next_deadline = absl::InfiniteFuture();
    for (const std::unique_ptr<Connection>& connection : connections_) {
      polled.push_back(
          {connection->at_end ? -1 : connection->peer->socket(), POLLIN | POLLRDHUP, 0});
      polled.push_back(
          {connection->process_ended || !connection->pidfd ? -1 : connection->pidfd.get(), POLLIN,
           0});
      if (connection->lease_id.empty()) {
        next_deadline = std::min(next_deadline, connection->hello_deadline);
      }
    }
    int timeout_ms = -1;
    if (next_deadline != absl::InfiniteFuture()) {
      timeout_ms = static_cast<int>(
          absl::ToInt64Milliseconds(std::max(next_deadline - absl::Now(), absl::ZeroDuration())) +
          1);
    }
    if (poll(polled.data(), polled.size(), timeout_ms) < 0 && errno != EINTR) return;
    if (polled[0].revents != 0) return;

    std::vector<std::unique_ptr<Connection>> remaining;
    for (size_t i = 0; i < connections_.size(); ++i) {
      Connection* const connection = connections_[i].get();
      bool goes_on = true;
      if (polled[3 + 2 * i].revents != 0) connection->process_ended = true;
      if (const short events = polled[2 + 2 * i].revents; events != 0) {
        goes_on = Serve(connection, (events & (POLLHUP | POLLRDHUP | POLLERR)) != 0);
      }
      if (connection->lease_id.empty()) {
        goes_on = goes_on && !connection->at_end && absl::Now() < connection->hello_deadline;
      } else if (goes_on && connection->at_end && connection->process_ended) {
        engine_->ReleaseLease(connection->lease_id);
        goes_on = false;
      }
      if (goes_on) remaining.push_back(std::move(connections_[i]));
    }
    connections_ = std::move(remaining);
    if (polled[1].revents != 0) Accept();
  }
}

void LifeSockets::Accept() {
  FileDescriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) return;
  const auto is_stranger = [](const std::unique_ptr<Connection>& connection) {
    return connection->lease_id.empty();
  };
  if (static_cast<size_t>(std::count_if(connections_.begin(), connections_.end(), is_stranger)) >=
      kStrangersMax) {
    connections_.erase(std::find_if(connections_.begin(), connections_.end(), is_stranger));
  }
  auto connection = std::make_unique<Connection>();
  connection->peer = std::make_shared<Peer>(std::move(socket));
  connection->hello_deadline = absl::Now() + kHelloTimeout;
  connections_.push_back(std::move(connection));
}

bool LifeSockets::Serve(Connection* connection, bool hung_up) {
  absl::StatusOr<DescriptorPacket> packet = connection->peer->Receive();
  if (!packet.ok() || packet->bytes.empty()) {
    // What was sent before the end is read first; an empty packet is not the end.
    connection->at_end = hung_up;
    return true;
  }
  v1::LifeClientMessage message;
  const bool parsed = message.ParseFromString(packet->bytes);
  if (connection->lease_id.empty()) {
    return parsed && message.has_hello() &&
           Greet(connection, std::move(packet->descriptor), message.hello().lease_id());
  }
  if (parsed && message.has_released()) {
    engine_->ReleaseLease(connection->lease_id);
    return false;
  }
  // Nonsense from a process that maps: nothing follows from it, least of all that it is gone.
  return true;
}

bool LifeSockets::Greet(Connection* connection, FileDescriptor pidfd, const std::string& lease_id) {
  absl::StatusOr<FileDescriptor> process =
      IdentifyPeer(connection->peer->socket(), std::move(pidfd));
  if (!process.ok()) {
    observer_->OnMappingError(MappingOperation::kIdentify, process.status().code());
    engine_->EndLease(lease_id, process.status());
    return false;
  }
  if (!engine_->AttachLease(lease_id, connection->peer).ok()) return false;
  connection->pidfd = *std::move(process);
  connection->lease_id = lease_id;
  return true;
}

}  // namespace kvdepot
