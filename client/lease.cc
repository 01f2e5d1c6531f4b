#include "client/lease.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/connection.h"
#include "client/grpc_status.h"
#include "gpu/descriptor_packet.h"
#include "gpu/map_region.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"

namespace kvdepot {
namespace {

// How long to wait before a mapping is asked for again, at first and at most: the daemon thinks
// that this process maps a slab which it has let go of, and is about to hear so.
constexpr absl::Duration kMapRetryMin = absl::Milliseconds(1);
constexpr absl::Duration kMapRetryMax = absl::Milliseconds(50);
// For a daemon that does not say whether it has registered a buffer.
constexpr absl::Duration kForgetTimeout = absl::Seconds(5);

absl::StatusOr<FileDescriptor> ConnectLifeSocket(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::UnavailableError(absl::StrCat("life_socket: ", path, ", is too long a path"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  FileDescriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket ||
      connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(absl::StrCat("life_socket: ", path, ": ", std::strerror(errno)));
  }
  return socket;
}

class OpenLease final : public Lease {
 public:
  OpenLease(const std::string& target, const Client::Options& options)
      : connection_(target, options.credentials, options.token),
        stub_(v1::KvDepotService::NewStub(connection_.channel())) {}

  ~OpenLease() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      changed_.notify_all();
    }
    if (heartbeat_.joinable()) heartbeat_.join();
    // Nothing is mapped any more: the daemon need not wait for the end of this process.
    regions_.clear();
    if (life_socket_) {
      v1::LifeClientMessage message;
      message.mutable_released();
      SendPacket(life_socket_.get(), message.SerializeAsString(), -1).IgnoreError();
    }
    if (stream_ != nullptr) {
      context_.TryCancel();
      if (reader_.joinable()) {
        reader_.join();
      } else {
        stream_->Finish().IgnoreError();
      }
    }
  }

  absl::Status Start(absl::Time deadline) {
    connection_.Prepare(&context_, absl::InfiniteFuture());
    stream_ = stub_->OpenLease(&context_);
    // A daemon that does not answer in time: the stream has no deadline of its own.
    std::thread reader([this] { Read(); });
    reader_ = std::move(reader);
    v1::OpenLeaseRequest request;
    request.mutable_opening()->set_layout_version(kMappedLayoutVersion);
    Write(request);
    absl::Status status = WaitFor(deadline, [this] { return opened_.has_value(); });
    if (!status.ok()) return status;
    absl::StatusOr<FileDescriptor> socket = ConnectLifeSocket(opened_->life_socket());
    if (!socket.ok()) return socket.status();
    life_socket_ = *std::move(socket);
    const FileDescriptor pidfd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
    if (!pidfd) {
      return absl::UnavailableError(absl::StrCat("pidfd: ", std::strerror(errno)));
    }
    v1::LifeClientMessage hello;
    hello.mutable_hello()->set_lease_id(opened_->lease_id());
    status = SendPacket(life_socket_.get(), hello.SerializeAsString(), pidfd.get());
    if (status.ok()) status = WaitFor(deadline, [this] { return attached_; });
    if (!status.ok()) return status;
    const absl::Duration timeout =
        absl::Seconds(opened_->timeout().seconds()) + absl::Nanoseconds(opened_->timeout().nanos());
    heartbeat_ = std::thread([this, period = timeout / 3] { SendHeartbeats(period); });
    return absl::OkStatus();
  }

  const std::string& id() const override { return opened_->lease_id(); }
  uint64_t epoch() const override { return opened_->epoch(); }
  const std::string& device() const override { return opened_->device(); }

  absl::Status status() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  bool IsUnmapWanted(const std::string& session_id) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return unmap_wanted_.count(session_id) > 0;
  }

  absl::StatusOr<v1::MapSessionResponse> Map(v1::MapSessionRequest request,
                                             absl::Time deadline) override {
    request.set_lease_id(id());
    request.set_epoch(epoch());
    return CallForDirectory<v1::MapSessionResponse>(
        deadline, [&](grpc::ClientContext* context, v1::MapSessionResponse* response) {
          return stub_->MapSession(context, request, response);
        });
  }

  absl::StatusOr<v1::CommitResponse> Commit(v1::CommitRequest request,
                                            absl::Time deadline) override {
    request.set_lease_id(id());
    request.set_epoch(epoch());
    return CallForDirectory<v1::CommitResponse>(
        deadline, [&](grpc::ClientContext* context, v1::CommitResponse* response) {
          return stub_->Commit(context, request, response);
        });
  }

  absl::StatusOr<v1::Session> Truncate(v1::TruncateSessionRequest request,
                                       absl::Time deadline) override {
    request.set_lease_id(id());
    request.set_epoch(epoch());
    const std::lock_guard<std::mutex> calls(calls_);
    v1::TruncateSessionResponse response;
    const absl::Status status = Call(deadline, [&](grpc::ClientContext* context) {
      return stub_->TruncateSession(context, request, &response);
    });
    if (!status.ok()) return status;
    return std::move(*response.mutable_session());
  }

  absl::Status Unmap(const std::string& session_id, absl::Time deadline) override {
    v1::UnmapSessionRequest request;
    request.set_lease_id(id());
    request.set_epoch(epoch());
    request.set_session_id(session_id);
    const std::lock_guard<std::mutex> calls(calls_);
    v1::UnmapSessionResponse response;
    absl::Status status = Call(deadline, [&](grpc::ClientContext* context) {
      return stub_->UnmapSession(context, request, &response);
    });
    DropUnusedRegions();
    return status;
  }

  void Retire(const std::string& session_id, uint64_t version) override {
    v1::OpenLeaseRequest request;
    request.mutable_retirement()->set_session_id(session_id);
    request.mutable_retirement()->set_version(version);
    Write(request);
  }

  RegionRef Region(uint64_t serial) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = regions_.find(serial);
    return found == regions_.end() ? nullptr : found->second;
  }

  absl::StatusOr<uint64_t> RegisterBuffer(const IpcRegion& memory, size_t offset, size_t size_bytes,
                                          absl::Time deadline) override {
    const std::lock_guard<std::mutex> registrations(registrations_);
    const uint64_t buffer = next_buffer_++;
    v1::RegisterBufferRequest request;
    request.set_lease_id(id());
    request.set_epoch(epoch());
    request.set_buffer(buffer);
    request.set_offset(offset);
    request.set_size_bytes(size_bytes);
    if (memory.kind == RegionKind::kSharedMemory) {
      request.set_kind(v1::BUFFER_KIND_SHARED_MEMORY);
      v1::LifeClientMessage message;
      message.mutable_buffer()->set_buffer(buffer);
      const absl::Status sent =
          SendPacket(life_socket_.get(), message.SerializeAsString(), memory.descriptor.get());
      // Where the daemon has gone the call says so.
      if (!sent.ok() && !absl::IsUnavailable(sent)) return sent;
    } else {
      request.set_kind(v1::BUFFER_KIND_CUDA_IPC);
      request.set_cuda_ipc_handle(memory.handle);
    }
    v1::RegisterBufferResponse response;
    const absl::Status status = Call(deadline, [&](grpc::ClientContext* context) {
      return stub_->RegisterBuffer(context, request, &response);
    });
    if (status.ok()) return buffer;
    // The daemon may have it although its answer was lost.
    if (absl::IsDeadlineExceeded(status) || absl::IsUnavailable(status)) Forget(buffer);
    return status;
  }

  absl::Status UnregisterBuffer(uint64_t buffer, absl::Time deadline) override {
    v1::UnregisterBufferRequest request;
    request.set_lease_id(id());
    request.set_epoch(epoch());
    request.set_buffer(buffer);
    v1::UnregisterBufferResponse response;
    absl::Status status = connection_.CallOnce(deadline, [&](grpc::ClientContext* context) {
      return stub_->UnregisterBuffer(context, request, &response);
    });
    // An earlier attempt's answer may have been lost, or another daemon answers by now.
    if (absl::IsNotFound(status) || absl::IsFailedPrecondition(status)) return absl::OkStatus();
    return status;
  }

 private:
  template <typename Attempt>
  absl::Status Call(absl::Time deadline, const Attempt& attempt) {
    absl::Status ended = status();
    // Where the daemon has gone another one may answer by now, and names both epochs.
    if (!ended.ok() && !absl::IsUnavailable(ended)) return ended;
    absl::Status answer = connection_.CallOnce(deadline, attempt);
    return ended.ok() || absl::IsFailedPrecondition(answer) ? answer : ended;
  }

  // A call that answers with a directory; its slabs are mapped when this returns.
  template <typename Response, typename Attempt>
  absl::StatusOr<Response> CallForDirectory(absl::Time deadline, const Attempt& attempt) {
    for (absl::Duration wait = kMapRetryMin;; wait = std::min(2 * wait, kMapRetryMax)) {
      {
        const std::lock_guard<std::mutex> calls(calls_);
        Response response;
        absl::Status status = Call(
            deadline, [&](grpc::ClientContext* context) { return attempt(context, &response); });
        // Whatever became of the call: the socket holds some hundred, and then the daemon cannot
        // send more.
        const absl::StatusOr<int> received = ReceivePending();
        const bool was_full = absl::IsResourceExhausted(status) && received.ok() && *received > 0;
        if (!status.ok() && !was_full) return status;
        if (!received.ok()) return received.status();
        if (status.ok()) {
          status = ReceiveSlabs(response.directory(), deadline);
          if (status.ok()) return response;
        }
        const bool again = was_full || absl::IsNotFound(status);
        if (!again || absl::Now() + wait >= deadline) return status;
      }
      absl::SleepFor(wait);
    }
  }

  // Unregisters what may have been registered, or is about to be.
  void Forget(uint64_t buffer) {
    const absl::Time deadline = absl::Now() + kForgetTimeout;
    while (absl::IsUnavailable(UnregisterBuffer(buffer, deadline)) && status().ok() &&
           absl::Now() + kMapRetryMax < deadline) {
      absl::SleepFor(kMapRetryMax);
    }
  }

  // False: the stream is broken, and the reader will say why.
  bool Write(const v1::OpenLeaseRequest& request) {
    const std::lock_guard<std::mutex> lock(writes_);
    return stream_->Write(request);
  }

  void Read() {
    v1::OpenLeaseResponse response;
    while (stream_->Read(&response)) {
      const std::lock_guard<std::mutex> lock(mutex_);
      switch (response.message_case()) {
        case v1::OpenLeaseResponse::kOpened:
          opened_ = response.opened();
          break;
        case v1::OpenLeaseResponse::kAttached:
          attached_ = true;
          break;
        case v1::OpenLeaseResponse::kUnmap:
          unmap_wanted_.insert(response.unmap().session_ids().begin(),
                               response.unmap().session_ids().end());
          break;
        case v1::OpenLeaseResponse::MESSAGE_NOT_SET:
          break;
      }
      changed_.notify_all();
    }
    absl::Status status = FromGrpcStatus(stream_->Finish());
    if (status.ok()) status = absl::UnavailableError("lease: the daemon has ended the stream");
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = std::move(status);
    changed_.notify_all();
  }

  template <typename Condition>
  absl::Status WaitFor(absl::Time deadline, const Condition& condition) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!condition()) {
      if (!status_.ok()) return status_;
      if (changed_.wait_until(lock, absl::ToChronoTime(deadline)) == std::cv_status::timeout) {
        return absl::DeadlineExceededError("lease: the daemon does not answer");
      }
    }
    return absl::OkStatus();
  }

  void SendHeartbeats(absl::Duration period) {
    v1::OpenLeaseRequest request;
    request.mutable_heartbeat();
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closing_ && status_.ok()) {
      lock.unlock();
      Write(request);
      lock.lock();
      changed_.wait_for(lock, absl::ToChronoNanoseconds(period),
                        [this] { return closing_ || !status_.ok(); });
    }
  }

  // How many slabs had come and are mapped now, also those of answers that were lost.
  absl::StatusOr<int> ReceivePending() {
    int count = 0;
    while (IsReadable(absl::ZeroDuration())) {
      absl::Status status = ReceiveSlab();
      if (!status.ok()) return status;
      ++count;
    }
    return count;
  }

  // They were sent before the answer, each once.
  absl::Status ReceiveSlabs(const v1::MappedDirectory& directory, absl::Time deadline) {
    absl::Status status;
    for (const v1::MappedSlab& slab : directory.slabs()) {
      while (status.ok() && Region(slab.serial()) == nullptr) {
        status = IsReadable(deadline - absl::Now())
                     ? ReceiveSlab()
                     : absl::DeadlineExceededError("life_socket: a slab has not come");
      }
    }
    if (!status.ok()) return status;
    // One that the daemon thought to be mapped, and this process had let go of meanwhile.
    for (const v1::MappedLayer& layer : directory.layers()) {
      for (const auto* list : {&layer.extents(), &layer.room()}) {
        for (const v1::MappedExtent& extent : *list) {
          if (Region(extent.slab()) == nullptr) {
            return absl::NotFoundError(absl::StrCat("slab: ", extent.slab(), ", is not mapped"));
          }
        }
      }
    }
    return absl::OkStatus();
  }

  bool IsReadable(absl::Duration wait) {
    pollfd polled = {life_socket_.get(), POLLIN, 0};
    const int64_t wait_ms = absl::ToInt64Milliseconds(std::max(wait, absl::ZeroDuration()));
    return poll(&polled, 1, static_cast<int>(std::min<int64_t>(wait_ms, 1 << 30))) > 0;
  }

  absl::Status ReceiveSlab() {
    absl::StatusOr<DescriptorPacket> packet = ReceivePacket(life_socket_.get());
    if (!packet.ok()) return packet.status();
    v1::LifeServerMessage message;
    if (packet->bytes.empty() || !message.ParseFromString(packet->bytes) || !message.has_slab()) {
      return absl::UnavailableError("life_socket: the daemon has closed it");
    }
    const v1::MappedSlab& slab = message.slab();
    absl::Status status;
    if (slab.kind() != v1::MAPPED_SLAB_KIND_CUDA_IPC && !packet->descriptor) {
      status = absl::ResourceExhaustedError(
          absl::StrCat("file_descriptors: this process has none left for slab ", slab.serial()));
    }
    if (status.ok()) status = MapSlab(slab, std::move(packet->descriptor));
    if (!status.ok()) {
      // The daemon is to send it again when it is needed.
      v1::OpenLeaseRequest request;
      request.mutable_unmapped()->add_slabs(slab.serial());
      Write(request);
    }
    return status;
  }

  absl::Status MapSlab(const v1::MappedSlab& slab, FileDescriptor descriptor) {
    IpcRegion region;
    region.kind = static_cast<RegionKind>(slab.kind());
    region.device = slab.device();
    region.size_bytes = slab.size_bytes();
    region.descriptor = std::move(descriptor);
    region.handle = slab.cuda_ipc_handle();
    absl::StatusOr<std::unique_ptr<MappedRegion>> mapped =
        MapRegion(region, slab.writable() ? RegionAccess::kReadWrite : RegionAccess::kRead);
    if (!mapped.ok()) {
      return absl::Status(mapped.status().code(),
                          absl::StrCat("slab ", slab.serial(), ": ", mapped.status().message()));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    regions_[slab.serial()] = *std::move(mapped);
    return absl::OkStatus();
  }

  void DropUnusedRegions() {
    v1::OpenLeaseRequest request;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto region = regions_.begin(); region != regions_.end();) {
        if (region->second.use_count() > 1) {
          ++region;
          continue;
        }
        request.mutable_unmapped()->add_slabs(region->first);
        region = regions_.erase(region);
      }
    }
    if (request.has_unmapped()) Write(request);
  }

  Connection connection_;
  const std::unique_ptr<v1::KvDepotService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::OpenLeaseRequest, v1::OpenLeaseResponse>> stream_;
  FileDescriptor life_socket_;
  std::thread reader_;
  std::thread heartbeat_;

  // Of those who read the life socket.
  std::mutex calls_;
  std::mutex registrations_;
  uint64_t next_buffer_ = 1;  // guarded by registrations_
  std::mutex writes_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_; opened_ does not change once Start has returned.
  absl::optional<v1::LeaseOpened> opened_;
  bool attached_ = false;
  bool closing_ = false;
  absl::Status status_;
  std::set<std::string> unmap_wanted_;
  std::map<uint64_t, RegionRef> regions_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<Lease>> Lease::Open(const std::string& target,
                                                   const Client::Options& options,
                                                   absl::Time deadline) {
  auto lease = std::make_shared<OpenLease>(target, options);
  absl::Status status = lease->Start(deadline);
  if (!status.ok()) return status;
  return std::shared_ptr<Lease>(std::move(lease));
}

}  // namespace kvdepot
