// A daemon of a few lines: answers as a script says, for tests of what the client does with
// answers.
//
// Listens on a Unix socket in the test's own folder. Thread-safe.
#ifndef KVDEPOT_TESTS_CLIENT_FAKE_DAEMON_H_
#define KVDEPOT_TESTS_CLIENT_FAKE_DAEMON_H_

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "grpcpp/server.h"
#include "kvdepot/v1/kv_depot_service.grpc.pb.h"
#include "tests/server/temporary_folder.h"

namespace kvdepot {

// UNAVAILABLE with RetryInfo of `delay_ms`, as a busy or draining daemon says it.
grpc::Status UnavailableFor(int delay_ms);

class FakeDaemon final : public v1::KvDepotService::Service {
 public:
  static constexpr uint64_t kMessageBytesMax = 64 << 10;

  FakeDaemon();
  ~FakeDaemon() override;

  const std::string& target() const { return target_; }

  // The next calls of `method` ("Attend") end with these, one each; later ones succeed.
  void Script(const std::string& method, std::deque<grpc::Status> statuses);
  // Calls of `method` so far.
  int Calls(const std::string& method);
  // Value of metadata `authorization` in the latest call.
  std::string Authorization();
  // Chunks of the latest Append call.
  std::vector<v1::AppendRequest> Appended();

  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override;
  grpc::Status GetSession(grpc::ServerContext* context, const v1::GetSessionRequest* request,
                          v1::GetSessionResponse* response) override;
  // Two pages of one session.
  grpc::Status ListSessions(grpc::ServerContext* context, const v1::ListSessionsRequest* request,
                            v1::ListSessionsResponse* response) override;
  grpc::Status DeleteSession(grpc::ServerContext* context, const v1::DeleteSessionRequest* request,
                             v1::DeleteSessionResponse* response) override;
  grpc::Status TruncateSession(grpc::ServerContext* context,
                               const v1::TruncateSessionRequest* request,
                               v1::TruncateSessionResponse* response) override;
  grpc::Status Append(grpc::ServerContext* context, grpc::ServerReader<v1::AppendRequest>* reader,
                      v1::AppendResponse* response) override;
  // Answers with the layer's number as the count of tokens; layer 7 ends the stream.
  grpc::Status Decode(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::DecodeResponse, v1::DecodeRequest>* stream) override;
  // Three chunks of one token each: k "ab", v "cd".
  grpc::Status Fetch(grpc::ServerContext* context, const v1::FetchRequest* request,
                     grpc::ServerWriter<v1::FetchResponse>* writer) override;

 private:
  // Counts the call and takes its status from the script.
  grpc::Status Begin(const std::string& method, const grpc::ServerContext& context);

  std::mutex mu_;
  std::map<std::string, std::deque<grpc::Status>> scripts_;
  std::map<std::string, int> calls_;
  std::string authorization_;
  std::vector<v1::AppendRequest> appended_;

  const TemporaryFolder folder_;
  std::string target_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_CLIENT_FAKE_DAEMON_H_
