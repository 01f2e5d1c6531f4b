#include "client/client.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/connection.h"
#include "client/rpc_decode_stream.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"

namespace kvdepot {
namespace {

using Stub = v1::KvDepotService::Stub;

std::unique_ptr<Stub> MakeStub(const Connection& connection) {
  return v1::KvDepotService::NewStub(connection.channel());
}

// Cut short: a daemon whose page tokens never end would otherwise keep the caller for ever.
constexpr int kPagesMax = 100000;

template <typename Request, typename Response>
using Method = grpc::Status (Stub::*)(grpc::ClientContext*, const Request&, Response*);

template <typename Request, typename Response>
absl::StatusOr<Response> CallIdempotent(const Connection& connection,
                                        Method<Request, Response> method, const Request& request,
                                        absl::Time deadline) {
  const std::unique_ptr<Stub> stub = MakeStub(connection);
  Response response;
  const absl::Status status = connection.CallRetrying(deadline, [&](grpc::ClientContext* context) {
    return ((*stub).*method)(context, request, &response);
  });
  if (!status.ok()) return status;
  return response;
}

// Replies that hold nothing but the session.
template <typename Response>
absl::StatusOr<v1::Session> SessionOf(absl::StatusOr<Response> response) {
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_session());
}

// Writes `tokens` in chunks. False: the stream broke, and its final status says why.
bool WriteChunks(const SessionVersion& session, absl::Span<const LayerTokens> tokens,
                 uint64_t message_bytes_max, grpc::ClientWriter<v1::AppendRequest>* writer) {
  bool first_message = true;
  for (const LayerTokens& layer : tokens) {
    const uint64_t chunk_tokens = *ChunkTokens(layer, message_bytes_max);
    for (uint64_t first = 0; first < layer.token_count; first += chunk_tokens) {
      v1::AppendRequest message;
      if (std::exchange(first_message, false)) {
        message.set_session_id(session.session_id);
        message.set_generation(session.generation);
      }
      *message.mutable_chunk() =
          MakeChunk(layer, first, std::min(chunk_tokens, layer.token_count - first));
      message.mutable_query_second_moments()->mutable_values()->Add(
          layer.query_second_moments.begin(), layer.query_second_moments.end());
      if (!writer->Write(message)) return false;
    }
  }
  return true;
}

// Where the next bytes of a fetched tensor go.
class Destination {
 public:
  explicit Destination(absl::Span<char> room) : room_(room) {}

  bool Take(const std::string& bytes) {
    if (bytes.size() > room_.size()) return false;
    std::copy(bytes.begin(), bytes.end(), room_.begin());
    room_.remove_prefix(bytes.size());
    return true;
  }

 private:
  absl::Span<char> room_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& target,
                                                        const Options& options,
                                                        absl::Time deadline) {
  auto client = std::unique_ptr<Client>(
      new Client(std::make_unique<Connection>(target, options.credentials, options.token)));
  absl::StatusOr<v1::GetServerInfoResponse> info = client->GetServerInfo(deadline);
  if (!info.ok()) return info.status();
  client->server_info_ = *std::move(info);
  return client;
}

Client::Client(std::unique_ptr<Connection> connection) : connection_(std::move(connection)) {}

Client::~Client() = default;

absl::StatusOr<v1::GetServerInfoResponse> Client::GetServerInfo(absl::Time deadline) const {
  return CallIdempotent(*connection_, &Stub::GetServerInfo, v1::GetServerInfoRequest(), deadline);
}

absl::StatusOr<v1::SetBudgetResponse> Client::SetBudget(absl::string_view budget,
                                                        absl::Time deadline) const {
  v1::SetBudgetRequest request;
  request.set_budget(std::string(budget));
  return CallIdempotent(*connection_, &Stub::SetBudget, request, deadline);
}

absl::StatusOr<v1::CreateSessionResponse> Client::CreateSession(
    const v1::CreateSessionRequest& request, absl::Time deadline) const {
  return CallIdempotent(*connection_, &Stub::CreateSession, request, deadline);
}

absl::StatusOr<v1::Session> Client::GetSession(absl::string_view session_id,
                                               absl::Time deadline) const {
  v1::GetSessionRequest request;
  request.set_session_id(std::string(session_id));
  return SessionOf(CallIdempotent(*connection_, &Stub::GetSession, request, deadline));
}

absl::StatusOr<v1::Session> Client::GetSessionByName(absl::string_view name,
                                                     absl::Time deadline) const {
  v1::GetSessionRequest request;
  request.set_name(std::string(name));
  return SessionOf(CallIdempotent(*connection_, &Stub::GetSession, request, deadline));
}

absl::StatusOr<std::vector<v1::Session>> Client::ListSessions(absl::Time deadline) const {
  std::vector<v1::Session> sessions;
  v1::ListSessionsRequest request;
  for (int page = 0; page < kPagesMax; ++page) {
    absl::StatusOr<v1::ListSessionsResponse> response =
        CallIdempotent(*connection_, &Stub::ListSessions, request, deadline);
    if (!response.ok()) return response.status();
    std::move(response->mutable_sessions()->begin(), response->mutable_sessions()->end(),
              std::back_inserter(sessions));
    if (response->next_page_token().empty()) return sessions;
    request.set_page_token(response->next_page_token());
  }
  return absl::InternalError(absl::StrCat("ListSessions did not end after ", kPagesMax, " pages"));
}

absl::Status Client::DeleteSession(absl::string_view session_id, absl::Time deadline) const {
  const std::unique_ptr<Stub> stub = MakeStub(*connection_);
  v1::DeleteSessionRequest request;
  request.set_session_id(std::string(session_id));
  int attempts = 0;
  absl::Status status = connection_->CallRetrying(deadline, [&](grpc::ClientContext* context) {
    ++attempts;
    v1::DeleteSessionResponse response;
    return stub->DeleteSession(context, request, &response);
  });
  // An earlier attempt may have deleted it and its reply been lost; ids are never used again.
  if (attempts > 1 && absl::IsNotFound(status)) return absl::OkStatus();
  return status;
}

absl::StatusOr<v1::Session> Client::TruncateSession(const SessionVersion& session,
                                                    uint64_t token_count,
                                                    absl::Time deadline) const {
  v1::TruncateSessionRequest request;
  request.set_session_id(session.session_id);
  request.set_generation(session.generation);
  request.set_token_count(token_count);
  v1::TruncateSessionResponse response;
  const absl::Status status = connection_->CallOnce(deadline, [&](grpc::ClientContext* context) {
    return MakeStub(*connection_)->TruncateSession(context, request, &response);
  });
  if (!status.ok()) return status;
  return std::move(*response.mutable_session());
}

absl::StatusOr<v1::Session> Client::SealSession(const SessionVersion& session,
                                                absl::Time deadline) const {
  v1::SealSessionRequest request;
  request.set_session_id(session.session_id);
  request.set_generation(session.generation);
  return SessionOf(CallIdempotent(*connection_, &Stub::SealSession, request, deadline));
}

absl::StatusOr<v1::Session> Client::TouchSession(absl::string_view session_id,
                                                 absl::Time deadline) const {
  v1::TouchSessionRequest request;
  request.set_session_id(std::string(session_id));
  return SessionOf(CallIdempotent(*connection_, &Stub::TouchSession, request, deadline));
}

absl::StatusOr<std::string> Client::PutCalibration(absl::string_view file,
                                                   absl::Time deadline) const {
  v1::PutCalibrationRequest request;
  request.set_file(std::string(file));
  absl::StatusOr<v1::PutCalibrationResponse> response =
      CallIdempotent(*connection_, &Stub::PutCalibration, request, deadline);
  if (!response.ok()) return response.status();
  return response->hash();
}

absl::StatusOr<std::vector<v1::CalibrationInfo>> Client::ListCalibrations(
    absl::Time deadline) const {
  absl::StatusOr<v1::ListCalibrationsResponse> response = CallIdempotent(
      *connection_, &Stub::ListCalibrations, v1::ListCalibrationsRequest(), deadline);
  if (!response.ok()) return response.status();
  return std::vector<v1::CalibrationInfo>(response->calibrations().begin(),
                                          response->calibrations().end());
}

absl::StatusOr<v1::AppendResponse> Client::Append(const SessionVersion& session,
                                                  absl::Span<const LayerTokens> tokens,
                                                  absl::Time deadline) const {
  const uint64_t message_bytes_max = server_info_.limits().message_bytes_max();
  for (const LayerTokens& layer : tokens) {
    const absl::StatusOr<uint64_t> chunk_tokens = ChunkTokens(layer, message_bytes_max);
    if (!chunk_tokens.ok()) return chunk_tokens.status();
  }
  const std::unique_ptr<Stub> stub = MakeStub(*connection_);
  v1::AppendResponse response;
  const absl::Status status =
      connection_->CallRetrying(deadline, [&](grpc::ClientContext* context) {
        auto writer = stub->Append(context, &response);
        if (WriteChunks(session, tokens, message_bytes_max, writer.get())) writer->WritesDone();
        return writer->Finish();
      });
  if (!status.ok()) return status;
  return response;
}

absl::StatusOr<v1::AttendResponse> Client::Attend(const v1::AttendRequest& request,
                                                  absl::Time deadline) const {
  return CallIdempotent(*connection_, &Stub::Attend, request, deadline);
}

std::unique_ptr<DecodeStream> Client::OpenDecode(absl::Time deadline) const {
  return std::make_unique<RpcDecodeStream>(*connection_, deadline);
}

absl::StatusOr<uint64_t> Client::Fetch(const v1::FetchRequest& request, absl::Span<char> k,
                                       absl::Span<char> v, absl::Time deadline) const {
  const std::unique_ptr<Stub> stub = MakeStub(*connection_);
  uint64_t token_count = 0;
  const absl::Status status =
      connection_->CallRetrying(deadline, [&](grpc::ClientContext* context) {
        Destination k_destination(k);
        Destination v_destination(v);
        token_count = 0;
        auto reader = stub->Fetch(context, request);
        v1::FetchResponse response;
        while (reader->Read(&response)) {
          if (!k_destination.Take(response.chunk().k()) ||
              !v_destination.Take(response.chunk().v())) {
            context->TryCancel();
            return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                "the buffers for k and v are smaller than what was asked for");
          }
          token_count += response.chunk().token_count();
        }
        return reader->Finish();
      });
  if (!status.ok()) return status;
  return token_count;
}

}  // namespace kvdepot
