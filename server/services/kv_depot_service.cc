#include "server/services/kv_depot_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/services/append_call.h"
#include "server/services/budget.h"
#include "server/services/buffer_convert.h"
#include "server/services/calibration_convert.h"
#include "server/services/decode_call.h"
#include "server/services/fetch_call.h"
#include "server/services/field_error.h"
#include "server/services/lease_call.h"
#include "server/services/mapping_convert.h"
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
template <typename Call>
Engine::Done<SessionInfo> EndWithSession(Call* call) {
  return [call](const absl::StatusOr<SessionInfo>& session) {
    call->End(AnswerWithSession(session, call->response()));
  };
}

// The callback of MapSession and Commit.
template <typename Call>
Engine::Done<MapReply> EndWithDirectory(Call* call) {
  return [call](const absl::StatusOr<MapReply>& reply) {
    if (reply.ok() && reply->directory != nullptr) {
      ToProto(*reply, call->response()->mutable_directory());
    }
    call->End(reply.status());
  };
}

// `caller` in the name of a lease.
Caller WithLease(Caller caller, const std::string& lease_id) {
  caller.lease_id = lease_id;
  return caller;
}

}  // namespace

template <typename Request, typename Response, typename Answer>
grpc::ServerUnaryReactor* KvDepotService::AnswerNow(RpcMethod method, Rpc* rpc, const Bytes* in,
                                                    Bytes* out, Answer answer) {
  return AnswerLater<Request, Response>(method, rpc, in, out, [&answer](auto* call) {
    call->End(answer(call->caller(), call->request(), call->response()));
  });
}

template <typename Request, typename Response, typename Start>
grpc::ServerUnaryReactor* KvDepotService::AnswerLater(RpcMethod method, Rpc* rpc, const Bytes* in,
                                                      Bytes* out, Start start) {
  auto* call = new UnaryCall<Request, Response>(context_, method, rpc, in, out);
  if (call->admission().ok()) {
    start(call);
  } else {
    call->End(call->admission());
  }
  return call;
}

grpc::ServerUnaryReactor* KvDepotService::GetServerInfo(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::GetServerInfoRequest, v1::GetServerInfoResponse>(
      RpcMethod::kGetServerInfo, rpc, in, out,
      [&](const Caller& caller, const v1::GetServerInfoRequest&,
          v1::GetServerInfoResponse* response) {
        FillServerInfo(context_, caller.tenant, response);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* KvDepotService::CreateSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::CreateSessionRequest, v1::CreateSessionResponse>(
      RpcMethod::kCreateSession, rpc, in, out,
      [&](const Caller& caller, const v1::CreateSessionRequest& request,
          v1::CreateSessionResponse* response) {
        absl::StatusOr<SessionSpec> spec = ToSessionSpec(request);
        if (!spec.ok()) return spec.status();
        bool created = false;
        absl::Status status = AnswerWithSession(
            context_.engine->CreateSession(caller, *std::move(spec), &created), response);
        response->set_created(created);
        return status;
      });
}

grpc::ServerUnaryReactor* KvDepotService::GetSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::GetSessionRequest, v1::GetSessionResponse>(
      RpcMethod::kGetSession, rpc, in, out,
      [&](const Caller& caller, const v1::GetSessionRequest& request,
          v1::GetSessionResponse* response) {
        absl::Status status = CheckGetSession(request, context_.options.engine);
        if (!status.ok()) return status;
        return AnswerWithSession(
            context_.engine->GetSession(caller, request.session_id(), request.name()), response);
      });
}

grpc::ServerUnaryReactor* KvDepotService::ListSessions(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::ListSessionsRequest, v1::ListSessionsResponse>(
      RpcMethod::kListSessions, rpc, in, out,
      [&](const Caller& caller, const v1::ListSessionsRequest& request,
          v1::ListSessionsResponse* response) {
        const absl::StatusOr<ListRange> range = ToListRange(request, context_.options.engine);
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

grpc::ServerUnaryReactor* KvDepotService::DeleteSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::DeleteSessionRequest, v1::DeleteSessionResponse>(
      RpcMethod::kDeleteSession, rpc, in, out,
      [&](const Caller& caller, const v1::DeleteSessionRequest& request,
          v1::DeleteSessionResponse*) {
        absl::Status status = CheckSessionId(request.session_id());
        if (!status.ok()) return status;
        return context_.engine->DeleteSession(caller, request.session_id());
      });
}

grpc::ServerUnaryReactor* KvDepotService::TruncateSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::TruncateSessionRequest, v1::TruncateSessionResponse>(
      RpcMethod::kTruncateSession, rpc, in, out, [&](auto* call) {
        const v1::TruncateSessionRequest& truncate = call->request();
        absl::Status status = CheckSessionId(truncate.session_id());
        if (status.ok() && truncate.epoch() != 0) {
          status = CheckEpoch(truncate.epoch(), context_.build.epoch);
        }
        if (!status.ok()) return call->End(status);
        context_.engine->TruncateSession(WithLease(call->caller(), truncate.lease_id()),
                                         truncate.session_id(), truncate.generation(),
                                         truncate.token_count(), EndWithSession(call));
      });
}

grpc::ServerUnaryReactor* KvDepotService::SealSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::SealSessionRequest, v1::SealSessionResponse>(
      RpcMethod::kSealSession, rpc, in, out, [&](auto* call) {
        const v1::SealSessionRequest& seal = call->request();
        absl::Status status = CheckSessionId(seal.session_id());
        if (!status.ok()) return call->End(status);
        context_.engine->SealSession(WithLease(call->caller(), seal.lease_id()), seal.session_id(),
                                     seal.generation(), EndWithSession(call));
      });
}

grpc::ServerUnaryReactor* KvDepotService::TouchSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::TouchSessionRequest, v1::TouchSessionResponse>(
      RpcMethod::kTouchSession, rpc, in, out,
      [&](const Caller& caller, const v1::TouchSessionRequest& request,
          v1::TouchSessionResponse* response) {
        absl::Status status = CheckSessionId(request.session_id());
        if (!status.ok()) return status;
        return AnswerWithSession(context_.engine->TouchSession(caller, request.session_id()),
                                 response);
      });
}

grpc::ServerUnaryReactor* KvDepotService::PutCalibration(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::PutCalibrationRequest, v1::PutCalibrationResponse>(
      RpcMethod::kPutCalibration, rpc, in, out,
      [&](const Caller& caller, const v1::PutCalibrationRequest& request,
          v1::PutCalibrationResponse* response) {
        const uint64_t bytes_max = context_.options.engine.calibration_bytes_max;
        if (request.file().size() > bytes_max) {
          return FieldError("file", absl::StrCat(request.file().size(), " bytes"),
                            absl::StrCat("at most ", bytes_max));
        }
        const absl::StatusOr<Calibration> calibration = ParseCalibration(request.file());
        if (!calibration.ok()) return calibration.status();
        response->set_hash(calibration->hash);
        return context_.engine->PutCalibration(caller, *calibration);
      });
}

grpc::ServerUnaryReactor* KvDepotService::ListCalibrations(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::ListCalibrationsRequest, v1::ListCalibrationsResponse>(
      RpcMethod::kListCalibrations, rpc, in, out,
      [&](const Caller& caller, const v1::ListCalibrationsRequest&,
          v1::ListCalibrationsResponse* response) {
        for (const CalibrationSummary& summary : context_.calibrations->List(caller.tenant)) {
          ToProto(summary, response->add_calibrations());
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* KvDepotService::Attend(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::AttendRequest, v1::AttendResponse>(
      RpcMethod::kAttend, rpc, in, out, [&](auto* call) {
        const v1::AttendRequest& attend = call->request();
        const absl::StatusOr<int> layer = ToLayer("layer", attend.layer(), context_.options.engine);
        if (!layer.ok()) return call->End(layer.status());
        absl::StatusOr<std::vector<AttendQuery>> queries =
            ToAttendQueries(attend, context_.options, call->buffer_finder());
        if (!queries.ok()) return call->End(queries.status());
        context_.engine->Attend(call->caller(), *layer, attend.scale(), *std::move(queries),
                                [call](absl::StatusOr<std::vector<AttendResult>> results) {
                                  if (!results.ok()) return call->End(results.status());
                                  for (AttendResult& result : *results) {
                                    ToProto(std::move(result), call->response()->add_items());
                                  }
                                  call->End(absl::OkStatus());
                                });
      });
}

grpc::ServerReadReactor<grpc::ByteBuffer>* KvDepotService::Append(Rpc* rpc, Bytes* out) {
  return new AppendCall(context_, rpc, out);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvDepotService::Decode(Rpc* rpc) {
  return new DecodeCall(context_, rpc);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* KvDepotService::Fetch(Rpc* rpc, const Bytes* in) {
  return new FetchCall(context_, rpc, in);
}

grpc::ServerUnaryReactor* KvDepotService::SetBudget(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::SetBudgetRequest, v1::SetBudgetResponse>(
      RpcMethod::kSetBudget, rpc, in, out,
      [&](const Caller& caller, const v1::SetBudgetRequest& request,
          v1::SetBudgetResponse* response) {
        return kvdepot::SetBudget(context_, caller.tenant, request, response);
      });
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KvDepotService::OpenLease(Rpc* rpc) {
  return new LeaseCall(context_, rpc);
}

grpc::ServerUnaryReactor* KvDepotService::MapSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::MapSessionRequest, v1::MapSessionResponse>(
      RpcMethod::kMapSession, rpc, in, out, [&](auto* call) {
        absl::Status status = CheckEpoch(call->request().epoch(), context_.build.epoch);
        if (!status.ok()) return call->End(status);
        absl::StatusOr<MapRequest> map = ToMapRequest(call->request());
        if (!map.ok()) return call->End(map.status());
        context_.engine->MapSession(
            call->caller(), *std::move(map), [call](const absl::StatusOr<MapReply>& reply) {
              if (reply.ok() && reply->session.has_value()) {
                ToProto(*reply->session, call->response()->mutable_session());
              }
              EndWithDirectory(call)(reply);
            });
      });
}

grpc::ServerUnaryReactor* KvDepotService::Commit(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::CommitRequest, v1::CommitResponse>(
      RpcMethod::kCommit, rpc, in, out, [&](auto* call) {
        absl::Status status = CheckEpoch(call->request().epoch(), context_.build.epoch);
        if (!status.ok()) return call->End(status);
        absl::StatusOr<CommitRequest> commit = ToCommitRequest(call->request());
        if (!commit.ok()) return call->End(commit.status());
        context_.engine->Commit(call->caller(), *std::move(commit), EndWithDirectory(call));
      });
}

grpc::ServerUnaryReactor* KvDepotService::UnmapSession(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::UnmapSessionRequest, v1::UnmapSessionResponse>(
      RpcMethod::kUnmapSession, rpc, in, out,
      [&](const Caller& caller, const v1::UnmapSessionRequest& request, v1::UnmapSessionResponse*) {
        absl::Status status = CheckEpoch(request.epoch(), context_.build.epoch);
        if (status.ok()) status = CheckLeaseId(request.lease_id());
        if (status.ok()) status = CheckSessionId(request.session_id());
        if (!status.ok()) return status;
        return context_.engine->UnmapSession(caller, request.lease_id(), request.session_id());
      });
}

grpc::ServerUnaryReactor* KvDepotService::RegisterBuffer(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerNow<v1::RegisterBufferRequest, v1::RegisterBufferResponse>(
      RpcMethod::kRegisterBuffer, rpc, in, out,
      [&](const Caller& caller, const v1::RegisterBufferRequest& request,
          v1::RegisterBufferResponse*) {
        absl::Status status = CheckEpoch(request.epoch(), context_.build.epoch);
        if (!status.ok()) return status;
        absl::StatusOr<BufferRequest> buffer = ToBufferRequest(request);
        if (!buffer.ok()) return buffer.status();
        return context_.engine->RegisterBuffer(caller, *std::move(buffer));
      });
}

grpc::ServerUnaryReactor* KvDepotService::UnregisterBuffer(Rpc* rpc, const Bytes* in, Bytes* out) {
  return AnswerLater<v1::UnregisterBufferRequest, v1::UnregisterBufferResponse>(
      RpcMethod::kUnregisterBuffer, rpc, in, out, [&](auto* call) {
        const v1::UnregisterBufferRequest& request = call->request();
        absl::Status status = CheckEpoch(request.epoch(), context_.build.epoch);
        if (status.ok()) status = CheckLeaseId(request.lease_id());
        if (!status.ok()) return call->End(status);
        context_.engine->UnregisterBuffer(
            call->caller(), request.lease_id(), request.buffer(),
            [call](const absl::Status& unregistered) { call->End(unregistered); });
      });
}

}  // namespace kvdepot
