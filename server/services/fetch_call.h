// Fetch: stored tokens in pieces below the message limit; the next piece is made while one is sent.
#ifndef KVDEPOT_SERVER_SERVICES_FETCH_CALL_H_
#define KVDEPOT_SERVER_SERVICES_FETCH_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvdepot/v1/kv_depot_service.pb.h"
#include "server/mutex.h"
#include "server/services/rpc_call.h"

namespace kvdepot {

// Deletes itself when gRPC is done with the call.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(const ServiceContext& context, grpc::CallbackServerContext* rpc,
            const grpc::ByteBuffer* request);

 private:
  void OnWriteDone(bool ok) override;
  void OnDone() override { delete this; }

  // What is to be read, with the request's blanks filled in from the session.
  absl::Status ReadRequest(const v1::FetchRequest& request);
  // Starts whatever can start now; ends the call when nothing is left.
  void Advance();
  void Read(uint64_t position, uint64_t token_count);
  void OnRead(absl::StatusOr<FetchedTokens> tokens);

  RpcCall call_;
  std::string session_id_;
  int layer_ = 0;
  DType dtype_ = DType::kBf16;

  Mutex mutex_;
  uint64_t position_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t remaining_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // read_response_ holds a piece that waits to be sent.
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  // Used by the engine's callback while reading_, and swapped only when neither is in use.
  grpc::ByteBuffer read_response_;
  grpc::ByteBuffer sent_response_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_FETCH_CALL_H_
