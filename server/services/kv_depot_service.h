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

// The generated CallbackService, but for streams from the client, which are raw (wire_message.h
// says why).
// clang-format off
using Rpcs = v1::KvDepotService;
using KvDepotCallbackService =
    Rpcs::WithRawCallbackMethod_Append<Rpcs::WithRawCallbackMethod_Decode<
    Rpcs::WithCallbackMethod_GetServerInfo<Rpcs::WithCallbackMethod_CreateSession<
    Rpcs::WithCallbackMethod_GetSession<Rpcs::WithCallbackMethod_ListSessions<
    Rpcs::WithCallbackMethod_DeleteSession<Rpcs::WithCallbackMethod_TruncateSession<
    Rpcs::WithCallbackMethod_SealSession<Rpcs::WithCallbackMethod_TouchSession<
    Rpcs::WithCallbackMethod_PutCalibration<Rpcs::WithCallbackMethod_ListCalibrations<
    Rpcs::WithCallbackMethod_Attend<Rpcs::WithCallbackMethod_Fetch<
    Rpcs::WithCallbackMethod_SetBudget<
    Rpcs::Service>>>>>>>>>>>>>>>;
// clang-format on

class KvDepotService final : public KvDepotCallbackService {
 public:
  // `context` outlives the service.
  explicit KvDepotService(const ServiceContext& context) : context_(context) {}

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* rpc,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* CreateSession(grpc::CallbackServerContext* rpc,
                                          const v1::CreateSessionRequest* request,
                                          v1::CreateSessionResponse* response) override;
  grpc::ServerUnaryReactor* GetSession(grpc::CallbackServerContext* rpc,
                                       const v1::GetSessionRequest* request,
                                       v1::GetSessionResponse* response) override;
  grpc::ServerUnaryReactor* ListSessions(grpc::CallbackServerContext* rpc,
                                         const v1::ListSessionsRequest* request,
                                         v1::ListSessionsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSession(grpc::CallbackServerContext* rpc,
                                          const v1::DeleteSessionRequest* request,
                                          v1::DeleteSessionResponse* response) override;
  grpc::ServerUnaryReactor* TruncateSession(grpc::CallbackServerContext* rpc,
                                            const v1::TruncateSessionRequest* request,
                                            v1::TruncateSessionResponse* response) override;
  grpc::ServerUnaryReactor* SealSession(grpc::CallbackServerContext* rpc,
                                        const v1::SealSessionRequest* request,
                                        v1::SealSessionResponse* response) override;
  grpc::ServerUnaryReactor* TouchSession(grpc::CallbackServerContext* rpc,
                                         const v1::TouchSessionRequest* request,
                                         v1::TouchSessionResponse* response) override;
  grpc::ServerUnaryReactor* PutCalibration(grpc::CallbackServerContext* rpc,
                                           const v1::PutCalibrationRequest* request,
                                           v1::PutCalibrationResponse* response) override;
  grpc::ServerUnaryReactor* ListCalibrations(grpc::CallbackServerContext* rpc,
                                             const v1::ListCalibrationsRequest* request,
                                             v1::ListCalibrationsResponse* response) override;
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* rpc,
                                   const v1::AttendRequest* request,
                                   v1::AttendResponse* response) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* Append(grpc::CallbackServerContext* rpc,
                                                    grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Decode(
      grpc::CallbackServerContext* rpc) override;
  grpc::ServerWriteReactor<v1::FetchResponse>* Fetch(grpc::CallbackServerContext* rpc,
                                                     const v1::FetchRequest* request) override;
  grpc::ServerUnaryReactor* SetBudget(grpc::CallbackServerContext* rpc,
                                      const v1::SetBudgetRequest* request,
                                      v1::SetBudgetResponse* response) override;

 private:
  // For RPCs that the engine answers at once: `answer(caller)` fills the response.
  template <typename Answer>
  grpc::ServerUnaryReactor* AnswerNow(RpcMethod method, grpc::CallbackServerContext* rpc,
                                      Answer answer);
  // For RPCs that go through the engine's queue: `start(call)` ends the call, now or later.
  template <typename Start>
  grpc::ServerUnaryReactor* AnswerLater(RpcMethod method, grpc::CallbackServerContext* rpc,
                                        Start start);

  const ServiceContext& context_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_SERVICES_KV_DEPOT_SERVICE_H_
