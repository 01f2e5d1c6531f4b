// A lease at the level of the protocol, for tests that break its rules.
#ifndef KVDEPOT_TESTS_INTEGRATION_RAW_LEASE_H_
#define KVDEPOT_TESTS_INTEGRATION_RAW_LEASE_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>
#include <grpcpp/support/sync_stream.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "gpu/file_descriptor.h"
#include "gpu/ipc_region.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"

namespace kvdepot {

// A pidfd of process `pid`.
FileDescriptor PidfdOf(int pid);

class RawLease {
 public:
  // Sends the opening; `token` is the bearer's, or empty. Whether it was accepted: opened().
  explicit RawLease(v1::KvDepotService::Stub* stub, uint32_t layout_version = 1,
                    const std::string& token = "");
  // Ends the stream and closes the socket, if that was not done before.
  ~RawLease();

  bool opened() const { return opened_.lease_id() != ""; }
  const v1::LeaseOpened& lease() const { return opened_; }

  // Connects the life socket and sends a hello with `pidfd` (-1: none) for `lease_id` (empty: this
  // lease's).
  void SayHello(int pidfd, const std::string& lease_id = "");
  // Hello with this process's own pidfd; returns once the daemon has accepted it.
  void Attach();
  // One message on the stream.
  void Send(const v1::OpenLeaseRequest& request) { stream_->Write(request); }
  void Retire(const std::string& session_id, uint64_t version);
  // What the daemon says when it ends the stream.
  grpc::Status WaitForEnd();

  grpc::Status Map(const std::string& session_id, v1::MapAccess access,
                   v1::MapSessionResponse* response);
  grpc::Status Map(const v1::MapSessionRequest& request, v1::MapSessionResponse* response);
  grpc::Status Commit(const v1::CommitRequest& request, v1::CommitResponse* response = nullptr);
  grpc::Status Unmap(const std::string& session_id);
  v1::CommitRequest CommitOf(const std::string& session_id, uint64_t generation,
                             uint64_t token_count) const;

  // A region that came over the life socket; waits for it.
  MappedRegion* Region(uint64_t serial);

  void CloseSocket() { socket_ = FileDescriptor(); }
  void CancelStream();

 private:
  v1::KvDepotService::Stub* const stub_;
  const std::string token_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::OpenLeaseRequest, v1::OpenLeaseResponse>> stream_;
  bool finished_ = false;
  v1::LeaseOpened opened_;
  FileDescriptor socket_;
  std::map<uint64_t, std::unique_ptr<MappedRegion>> regions_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_RAW_LEASE_H_
