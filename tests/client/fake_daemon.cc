#include "tests/client/fake_daemon.h"

#include <stdlib.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace kvdepot {

grpc::Status UnavailableFor(int delay_ms) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_nanos(delay_ms * 1000000);
  google::rpc::Status rich;
  rich.set_code(grpc::StatusCode::UNAVAILABLE);
  rich.set_message("busy");
  rich.add_details()->PackFrom(info);
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "busy", rich.SerializeAsString());
}

FakeDaemon::FakeDaemon() {
  target_ = absl::StrCat("unix://", folder_.path(), "/socket");
  grpc::ServerBuilder builder;
  builder.AddListeningPort(target_, grpc::InsecureServerCredentials());
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) abort();
}

FakeDaemon::~FakeDaemon() { server_->Shutdown(absl::ToChronoTime(absl::Now())); }

void FakeDaemon::Script(const std::string& method, std::deque<grpc::Status> statuses) {
  const std::lock_guard<std::mutex> lock(mu_);
  scripts_[method] = std::move(statuses);
}

int FakeDaemon::Calls(const std::string& method) {
  const std::lock_guard<std::mutex> lock(mu_);
  return calls_[method];
}

std::string FakeDaemon::Authorization() {
  const std::lock_guard<std::mutex> lock(mu_);
  return authorization_;
}

std::vector<v1::AppendRequest> FakeDaemon::Appended() {
  const std::lock_guard<std::mutex> lock(mu_);
  return appended_;
}

grpc::Status FakeDaemon::Begin(const std::string& method, const grpc::ServerContext& context) {
  const std::lock_guard<std::mutex> lock(mu_);
  ++calls_[method];
  const auto header = context.client_metadata().find("authorization");
  authorization_ = header == context.client_metadata().end()
                       ? ""
                       : std::string(header->second.data(), header->second.size());
  std::deque<grpc::Status>& script = scripts_[method];
  if (script.empty()) return grpc::Status::OK;
  const grpc::Status status = script.front();
  script.pop_front();
  return status;
}

grpc::Status FakeDaemon::GetServerInfo(grpc::ServerContext* context,
                                       const v1::GetServerInfoRequest*,
                                       v1::GetServerInfoResponse* response) {
  response->set_epoch(1);
  response->mutable_limits()->set_message_bytes_max(kMessageBytesMax);
  return Begin("GetServerInfo", *context);
}

grpc::Status FakeDaemon::GetSession(grpc::ServerContext* context,
                                    const v1::GetSessionRequest* request,
                                    v1::GetSessionResponse* response) {
  response->mutable_session()->set_id(request->session_id());
  response->mutable_session()->set_name(request->name());
  return Begin("GetSession", *context);
}

grpc::Status FakeDaemon::ListSessions(grpc::ServerContext* context,
                                      const v1::ListSessionsRequest* request,
                                      v1::ListSessionsResponse* response) {
  const bool first = request->page_token().empty();
  response->add_sessions()->set_name(first ? "first" : "second");
  if (first) response->set_next_page_token("more");
  return Begin("ListSessions", *context);
}

grpc::Status FakeDaemon::DeleteSession(grpc::ServerContext* context,
                                       const v1::DeleteSessionRequest*,
                                       v1::DeleteSessionResponse*) {
  return Begin("DeleteSession", *context);
}

grpc::Status FakeDaemon::TruncateSession(grpc::ServerContext* context,
                                         const v1::TruncateSessionRequest*,
                                         v1::TruncateSessionResponse*) {
  return Begin("TruncateSession", *context);
}

grpc::Status FakeDaemon::Append(grpc::ServerContext* context,
                                grpc::ServerReader<v1::AppendRequest>* reader,
                                v1::AppendResponse* response) {
  const grpc::Status status = Begin("Append", *context);
  // A refusing daemon does not read the rest.
  if (!status.ok()) return status;
  std::vector<v1::AppendRequest> messages;
  v1::AppendRequest message;
  while (reader->Read(&message)) messages.push_back(message);
  response->add_layers()->mutable_state()->set_token_count(messages.size());
  const std::lock_guard<std::mutex> lock(mu_);
  appended_ = std::move(messages);
  return grpc::Status::OK;
}

grpc::Status FakeDaemon::Decode(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<v1::DecodeResponse, v1::DecodeRequest>* stream) {
  const grpc::Status status = Begin("Decode", *context);
  v1::DecodeRequest request;
  while (stream->Read(&request)) {
    if (request.layer() == 7) return grpc::Status(grpc::StatusCode::ABORTED, "generation: 1");
    v1::DecodeResponse response;
    response.add_items()->set_token_count(request.layer());
    stream->Write(response);
  }
  return status;
}

grpc::Status FakeDaemon::Fetch(grpc::ServerContext* context, const v1::FetchRequest*,
                               grpc::ServerWriter<v1::FetchResponse>* writer) {
  v1::FetchResponse response;
  response.mutable_chunk()->set_token_count(1);
  response.mutable_chunk()->set_k("ab");
  response.mutable_chunk()->set_v("cd");
  // A scripted failure comes after the first chunk: what was written must be written anew.
  const grpc::Status status = Begin("Fetch", *context);
  writer->Write(response);
  if (!status.ok()) return status;
  writer->Write(response);
  writer->Write(response);
  return grpc::Status::OK;
}

}  // namespace kvdepot
