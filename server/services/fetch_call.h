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
  void Read(FetchRange range);
  void OnRead(int layer, absl::StatusOr<FetchedTokens> tokens);

  RpcCall call_;
  // Of K or of V, as they are sent.
  size_t token_bytes_ = 0;

  Mutex mutex_;
  // What is still to be read; over once its token_count is 0.
  FetchRange remaining_ ABSL_GUARDED_BY(mutex_);
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
