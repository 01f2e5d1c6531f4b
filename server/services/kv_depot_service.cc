#include "server/services/kv_depot_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/services/append_call.h"
#include "server/services/budget.h"
#include "server/services/calibration_convert.h"
#include "server/services/decode_call.h"
#include "server/services/fetch_call.h"
#include "server/services/field_error.h"
#include "server/services/server_info.h"
#include "server/services/session_convert.h"
#include "server/services/token_convert.h"
#include "server/services/unary_call.h"

namespace kvdepot {
namespace {

// The answer of the RPCs that return a session.
template <typename Response>
absl::Status AnswerWithSession(const absl::StatusOr<SessionInfo>& session, Response* response) {
  if (session.ok()) ToProto(*session, response->mutable_session());
  return session.status();
}

// The callback of the same where they are queued.
template <typename Response>
Engine::Done<SessionInfo> EndWithSession(UnaryCall* call, Response* response) {
  return [call, response](const absl::StatusOr<SessionInfo>& session) {
    call->End(AnswerWithSession(session, response));
  };
}

}  // namespace

template <typename Answer>
grpc::ServerUnaryReactor* KvDepotService::AnswerNow(RpcMethod method,
                                                    grpc::CallbackServerContext* rpc,
                                                    Answer answer) {
  return AnswerLater(method, rpc,
                     [&answer](UnaryCall* call) { call->End(answer(call->caller())); });
}

template <typename Start>
grpc::ServerUnaryReactor* KvDepotService::AnswerLater(RpcMethod method,
                                                      grpc::CallbackServerContext* rpc,
                                                      Start start) {
  auto* call = new UnaryCall(context_, method, rpc);
  if (call->admission().ok()) {
    start(call);
  } else {
    call->End(call->admission());
  }
  return call;
}

grpc::ServerUnaryReactor* KvDepotService::GetServerInfo(grpc::CallbackServerContext* rpc,
                                                        const v1::GetServerInfoRequest*,
                                                        v1::GetServerInfoResponse* response) {
  return AnswerNow(RpcMethod::kGetServerInfo, rpc, [&](const Caller& caller) {
    FillServerInfo(context_, caller.tenant, response);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvDepotService::CreateSession(grpc::CallbackServerContext* rpc,
                                                        const v1::CreateSessionRequest* request,
                                                        v1::CreateSessionResponse* response) {
  return AnswerNow(RpcMethod::kCreateSession, rpc, [&](const Caller& caller) {
    absl::StatusOr<SessionSpec> spec = ToSessionSpec(*request);
    if (!spec.ok()) return spec.status();
    bool created = false;
    absl::Status status = AnswerWithSession(
        context_.engine->CreateSession(caller, *std::move(spec), &created), response);
    response->set_created(created);
    return status;
  });
}

grpc::ServerUnaryReactor* KvDepotService::GetSession(grpc::CallbackServerContext* rpc,
                                                     const v1::GetSessionRequest* request,
                                                     v1::GetSessionResponse* response) {
  return AnswerNow(RpcMethod::kGetSession, rpc, [&](const Caller& caller) {
    absl::Status status = CheckGetSession(*request, context_.options.engine);
    if (!status.ok()) return status;
    return AnswerWithSession(
        context_.engine->GetSession(caller, request->session_id(), request->name()), response);
  });
}

grpc::ServerUnaryReactor* KvDepotService::ListSessions(grpc::CallbackServerContext* rpc,
                                                       const v1::ListSessionsRequest* request,
                                                       v1::ListSessionsResponse* response) {
  return AnswerNow(RpcMethod::kListSessions, rpc, [&](const Caller& caller) {
    const absl::StatusOr<ListRange> range = ToListRange(*request, context_.options.engine);
    if (!range.ok()) return range.status();
    // One more than asked for tells whether a page follows.
    const std::vector<SessionInfo> sessions =
        context_.engine->ListSessions(caller, range->after_name, range->limit + 1);
    for (const SessionInfo& session : sessions) {
      if (static_cast<size_t>(response->sessions_size()) == range->limit) {
        response->set_next_page_token(response->sessions().rbegin()->name());
        break;
      }
      ToProto(session, response->add_sessions());
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvDepotService::DeleteSession(grpc::CallbackServerContext* rpc,
                                                        const v1::DeleteSessionRequest* request,
                                                        v1::DeleteSessionResponse*) {
  return AnswerNow(RpcMethod::kDeleteSession, rpc, [&](const Caller& caller) {
    absl::Status status = CheckSessionId(request->session_id());
    if (!status.ok()) return status;
    return context_.engine->DeleteSession(caller, request->session_id());
  });
}

grpc::ServerUnaryReactor* KvDepotService::TruncateSession(grpc::CallbackServerContext* rpc,
                                                          const v1::TruncateSessionRequest* request,
                                                          v1::TruncateSessionResponse* response) {
  return AnswerLater(RpcMethod::kTruncateSession, rpc, [&](UnaryCall* call) {
    absl::Status status = CheckSessionId(request->session_id());
    if (!status.ok()) return call->End(status);
    context_.engine->TruncateSession(call->caller(), request->session_id(), request->generation(),
                                     request->token_count(), EndWithSession(call, response));
  });
}

grpc::ServerUnaryReactor* KvDepotService::SealSession(grpc::CallbackServerContext* rpc,
                                                      const v1::SealSessionRequest* request,
                                                      v1::SealSessionResponse* response) {
  return AnswerLater(RpcMethod::kSealSession, rpc, [&](UnaryCall* call) {
    absl::Status status = CheckSessionId(request->session_id());
    if (!status.ok()) return call->End(status);
    context_.engine->SealSession(call->caller(), request->session_id(), request->generation(),
                                 EndWithSession(call, response));
  });
}

grpc::ServerUnaryReactor* KvDepotService::TouchSession(grpc::CallbackServerContext* rpc,
                                                       const v1::TouchSessionRequest* request,
                                                       v1::TouchSessionResponse* response) {
  return AnswerNow(RpcMethod::kTouchSession, rpc, [&](const Caller& caller) {
    absl::Status status = CheckSessionId(request->session_id());
    if (!status.ok()) return status;
    return AnswerWithSession(context_.engine->TouchSession(caller, request->session_id()),
                             response);
  });
}

grpc::ServerUnaryReactor* KvDepotService::PutCalibration(grpc::CallbackServerContext* rpc,
                                                         const v1::PutCalibrationRequest* request,
                                                         v1::PutCalibrationResponse* response) {
  return AnswerNow(RpcMethod::kPutCalibration, rpc, [&](const Caller& caller) {
    const uint64_t bytes_max = context_.options.engine.calibration_bytes_max;
    if (request->file().size() > bytes_max) {
      return FieldError("file", absl::StrCat(request->file().size(), " bytes"),
                        absl::StrCat("at most ", bytes_max));
    }
    const absl::StatusOr<Calibration> calibration = ParseCalibration(request->file());
    if (!calibration.ok()) return calibration.status();
    response->set_hash(calibration->hash);
    return context_.engine->PutCalibration(caller, *calibration);
  });
}

grpc::ServerUnaryReactor* KvDepotService::ListCalibrations(grpc::CallbackServerContext* rpc,
                                                           const v1::ListCalibrationsRequest*,
                                                           v1::ListCalibrationsResponse* response) {
  return AnswerNow(RpcMethod::kListCalibrations, rpc, [&](const Caller& caller) {
    for (const CalibrationSummary& summary : context_.calibrations->List(caller.tenant)) {
      ToProto(summary, response->add_calibrations());
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* KvDepotService::Attend(grpc::CallbackServerContext* rpc,
                                                 const v1::AttendRequest* request,
                                                 v1::AttendResponse* response) {
  return AnswerLater(RpcMethod::kAttend, rpc, [&](UnaryCall* call) {
    const absl::StatusOr<int> layer = ToLayer("layer", request->layer(), context_.options.engine);
    if (!layer.ok()) return call->End(layer.status());
    absl::StatusOr<std::vector<AttendQuery>> queries = ToAttendQueries(*request, context_.options);
    if (!queries.ok()) return call->End(queries.status());
    context_.engine->Attend(call->caller(), *layer, request->scale(), *std::move(queries),
                            [call, response](absl::StatusOr<std::vector<AttendResult>> results) {
                              if (!results.ok()) return call->End(results.status());
                              for (AttendResult& result : *results) {
                                ToProto(std::move(result), response->add_items());
                              }
                              call->End(absl::OkStatus());
                            });
  });
}

grpc::ServerReadReactor<grpc::ByteBuffer>* KvDepotService::Append(grpc::CallbackServerContext* rpc,
                                                                  grpc::ByteBuffer* response) {
  return new AppendCall(context_, rpc, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvDepotService::Decode(
    grpc::CallbackServerContext* rpc) {
  return new DecodeCall(context_, rpc);
}

grpc::ServerWriteReactor<v1::FetchResponse>* KvDepotService::Fetch(
    grpc::CallbackServerContext* rpc, const v1::FetchRequest* request) {
  return new FetchCall(context_, rpc, request);
}

grpc::ServerUnaryReactor* KvDepotService::SetBudget(grpc::CallbackServerContext* rpc,
                                                    const v1::SetBudgetRequest* request,
                                                    v1::SetBudgetResponse* response) {
  return AnswerNow(RpcMethod::kSetBudget, rpc, [&](const Caller& caller) {
    return kvdepot::SetBudget(context_, caller.tenant, *request, response);
  });
}

}  // namespace kvdepot
