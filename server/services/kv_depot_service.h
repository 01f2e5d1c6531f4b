// The RPCs of kvdepot.v1.KvDepotService: convert, ask the engine, convert back. No handler waits:
// work goes to the engine's queue, and the answer is sent from its callback.
#ifndef KVDEPOT_SERVER_SERVICES_KV_DEPOT_SERVICE_H_
#define KVDEPOT_SERVER_SERVICES_KV_DEPOT_SERVICE_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include "kvdepot/v1/kv_depot_service.grpc.pb.h"
#include "server/services/service_context.h"

namespace kvdepot {

// The generated CallbackService, but with messages as bytes (wire_message.h says why).
// clang-format off
using Rpcs = v1::KvDepotService;
using KvDepotCallbackService =
    Rpcs::WithRawCallbackMethod_Append<Rpcs::WithRawCallbackMethod_Decode<
    Rpcs::WithRawCallbackMethod_GetServerInfo<Rpcs::WithRawCallbackMethod_CreateSession<
    Rpcs::WithRawCallbackMethod_GetSession<Rpcs::WithRawCallbackMethod_ListSessions<
    Rpcs::WithRawCallbackMethod_DeleteSession<Rpcs::WithRawCallbackMethod_TruncateSession<
    Rpcs::WithRawCallbackMethod_SealSession<Rpcs::WithRawCallbackMethod_TouchSession<
    Rpcs::WithRawCallbackMethod_PutCalibration<Rpcs::WithRawCallbackMethod_ListCalibrations<
    Rpcs::WithRawCallbackMethod_Attend<Rpcs::WithRawCallbackMethod_Fetch<
    Rpcs::WithRawCallbackMethod_SetBudget<Rpcs::WithRawCallbackMethod_OpenLease<
    Rpcs::WithRawCallbackMethod_MapSession<Rpcs::WithRawCallbackMethod_Commit<
    Rpcs::WithRawCallbackMethod_UnmapSession<Rpcs::WithRawCallbackMethod_RegisterBuffer<
    Rpcs::WithRawCallbackMethod_UnregisterBuffer<
    Rpcs::Service>>>>>>>>>>>>>>>>>>>>>;
// clang-format on

class KvDepotService final : public KvDepotCallbackService {
 public:
  // `context` outlives the service.
  explicit KvDepotService(const ServiceContext& context) : context_(context) {}

  using Rpc = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  using Unary = grpc::ServerUnaryReactor;

  Unary* GetServerInfo(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* CreateSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* GetSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* ListSessions(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* DeleteSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* TruncateSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* SealSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* TouchSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* PutCalibration(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* ListCalibrations(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* Attend(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* SetBudget(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* MapSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* Commit(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* UnmapSession(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* RegisterBuffer(Rpc* rpc, const Bytes* in, Bytes* out) override;
  Unary* UnregisterBuffer(Rpc* rpc, const Bytes* in, Bytes* out) override;
  grpc::ServerReadReactor<Bytes>* Append(Rpc* rpc, Bytes* out) override;
  grpc::ServerBidiReactor<Bytes, Bytes>* Decode(Rpc* rpc) override;
  grpc::ServerBidiReactor<Bytes, Bytes>* OpenLease(Rpc* rpc) override;
  grpc::ServerWriteReactor<Bytes>* Fetch(Rpc* rpc, const Bytes* in) override;

 private:
  // For RPCs that the engine answers at once: `answer(caller, request, response)` fills the
  // response.
  template <typename Request, typename Response, typename Answer>
  Unary* AnswerNow(RpcMethod method, Rpc* rpc, const Bytes* in, Bytes* out, Answer answer);
  // For RPCs that go through the engine's queue: `start(call)` ends the UnaryCall, now or later.
  template <typename Request, typename Response, typename Start>
  Unary* AnswerLater(RpcMethod method, Rpc* rpc, const Bytes* in, Bytes* out, Start start);

  const ServiceContext& context_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_KV_DEPOT_SERVICE_H_
