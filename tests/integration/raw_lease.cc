#include "tests/integration/raw_lease.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "gpu/descriptor_packet.h"
#include "gpu/shared_memory.h"
#include "gtest/gtest.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {

FileDescriptor PidfdOf(int pid) {
  return FileDescriptor(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

RawLease::RawLease(v1::KvDepotService::Stub* stub, uint32_t layout_version,
                   const std::string& token)
    : stub_(stub), token_(token) {
  if (!token.empty()) context_.AddMetadata("authorization", absl::StrCat("Bearer ", token));
  stream_ = stub->OpenLease(&context_);
  v1::OpenLeaseRequest request;
  request.mutable_opening()->set_layout_version(layout_version);
  stream_->Write(request);
  v1::OpenLeaseResponse response;
  if (stream_->Read(&response)) opened_ = response.opened();
}

RawLease::~RawLease() { CancelStream(); }

void RawLease::SayHello(int pidfd, const std::string& lease_id) {
  socket_ = FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, opened_.life_socket().data(), opened_.life_socket().size());
  ASSERT_EQ(connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
            0);
  v1::LifeClientMessage message;
  message.mutable_hello()->set_lease_id(lease_id.empty() ? opened_.lease_id() : lease_id);
  EXPECT_TRUE(SendPacket(socket_.get(), message.SerializeAsString(), pidfd).ok());
}

void RawLease::Attach() {
  const FileDescriptor own = PidfdOf(getpid());
  SayHello(own.get());
  v1::OpenLeaseResponse response;
  ASSERT_TRUE(stream_->Read(&response) && response.has_attached());
}

void RawLease::Retire(const std::string& session_id, uint64_t version) {
  v1::OpenLeaseRequest request;
  request.mutable_retirement()->set_session_id(session_id);
  request.mutable_retirement()->set_version(version);
  Send(request);
}

grpc::Status RawLease::WaitForEnd() {
  v1::OpenLeaseResponse response;
  while (stream_->Read(&response)) {
  }
  finished_ = true;
  return stream_->Finish();
}

void RawLease::CancelStream() {
  if (finished_) return;
  context_.TryCancel();
  WaitForEnd();
}

grpc::Status RawLease::Map(const std::string& session_id, v1::MapAccess access,
                           v1::MapSessionResponse* response) {
  v1::MapSessionRequest request;
  request.set_session_id(session_id);
  request.set_access(access);
  request.set_lease_id(opened_.lease_id());
  request.set_epoch(opened_.epoch());
  return Map(request, response);
}

grpc::Status RawLease::Map(const v1::MapSessionRequest& request, v1::MapSessionResponse* response) {
  Context context(token_);
  return stub_->MapSession(context.get(), request, response);
}

grpc::Status RawLease::Commit(const v1::CommitRequest& request, v1::CommitResponse* response) {
  Context context(token_);
  v1::CommitResponse unused;
  return stub_->Commit(context.get(), request, response == nullptr ? &unused : response);
}

grpc::Status RawLease::Unmap(const std::string& session_id) {
  v1::UnmapSessionRequest request;
  request.set_session_id(session_id);
  request.set_lease_id(opened_.lease_id());
  request.set_epoch(opened_.epoch());
  v1::UnmapSessionResponse response;
  Context context(token_);
  return stub_->UnmapSession(context.get(), request, &response);
}

v1::CommitRequest RawLease::CommitOf(const std::string& session_id, uint64_t generation,
                                     uint64_t token_count) const {
  v1::CommitRequest request;
  request.set_lease_id(opened_.lease_id());
  request.set_epoch(opened_.epoch());
  request.set_session_id(session_id);
  request.set_generation(generation);
  request.set_token_count(token_count);
  return request;
}

MappedRegion* RawLease::Region(uint64_t serial) {
  while (regions_.count(serial) == 0) {
    absl::StatusOr<DescriptorPacket> packet = ReceivePacket(socket_.get());
    v1::LifeServerMessage message;
    if (!packet.ok() || !message.ParseFromString(packet->bytes)) return nullptr;
    const v1::MappedSlab& slab = message.slab();
    IpcRegion sent;
    sent.size_bytes = slab.size_bytes();
    sent.descriptor = std::move(packet->descriptor);
    auto region =
        MapSharedMemory(sent, slab.writable() ? RegionAccess::kReadWrite : RegionAccess::kRead);
    if (!region.ok()) return nullptr;
    regions_[slab.serial()] = *std::move(region);
  }
  return regions_[serial].get();
}

}  // namespace kvdepot
