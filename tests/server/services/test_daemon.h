// A whole daemon inside the test's process, on a Unix socket in a folder of its own, and the verbs
// that tests speak: small sessions of known values, one call each.
#ifndef KVDEPOT_TESTS_SERVER_SERVICES_TEST_DAEMON_H_
#define KVDEPOT_TESTS_SERVER_SERVICES_TEST_DAEMON_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kvdepot/v1/kv_depot_service.grpc.pb.h"
#include "server/options.h"
#include "server/server.h"
#include "tests/server/temporary_folder.h"

namespace kvdepot {

// Every session of these tests: fp32, so that values are written down as they are.
inline constexpr int kLayers = 2;
inline constexpr int kKvHeads = 2;
inline constexpr int kQueryHeads = 4;
inline constexpr int kHeadDim = 64;
inline constexpr int kRowValues = kKvHeads * kHeadDim;
inline constexpr int kQueryValues = kQueryHeads * kHeadDim;

// Values in (-1, 1) that depend on `seed` and their index alone.
std::vector<float> Values(int seed, int count);
std::string Bytes(const std::vector<float>& values);
std::vector<float> Floats(const std::string& bytes);

// Tokens position .. position + count - 1 of a layer: the same for the same position.
v1::TokenChunk Chunk(int layer, int position, int count);
v1::QueryTokens Queries(int seed, int count);

// A call's context with a deadline far away.
class Context {
 public:
  explicit Context(const std::string& token = "");
  grpc::ClientContext* get() { return &context_; }

 private:
  grpc::ClientContext context_;
};

// For tests that map sessions as host memory, which they are on the CPU alone.
inline void InHostMemory(Options& options, const std::string& /*folder*/) {
  options.device = "cpu";
}

class TestDaemon {
 public:
  // `folder` is the daemon's own and goes with it.
  using Change = std::function<void(Options& options, const std::string& folder)>;

  explicit TestDaemon(
      const Change& change = [](Options&, const std::string&) {}, const Server::Hooks& hooks = {});
  ~TestDaemon();

  v1::KvDepotService::Stub& stub() { return *stub_; }
  Server& server() const { return *server_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Who the calls below come from. Empty: they carry no token.
  void CallAs(const std::string& token) { token_ = token; }
  const std::string& token() const { return token_; }

  // Fails the test where it fails.
  v1::Session CreateSession(const std::string& name, v1::Codec codec = v1::CODEC_RAW);
  v1::Session GetSession(const std::string& id);
  // One call with these messages; `response` may be null.
  grpc::Status Append(const std::vector<v1::AppendRequest>& requests,
                      v1::AppendResponse* response = nullptr);
  // Tokens position .. position + count - 1 to all layers, in one call.
  grpc::Status AppendTokens(const v1::Session& session, int position, int count);
  grpc::Status Attend(const v1::AttendRequest& request, v1::AttendResponse* response = nullptr);
  // Sends the messages one after the other, each after the answer to the one before.
  grpc::Status Decode(const std::vector<v1::DecodeRequest>& requests,
                      std::vector<v1::DecodeResponse>* responses = nullptr);
  // All chunks put together.
  grpc::Status Fetch(const v1::FetchRequest& request, v1::TokenChunk* tokens,
                     int* chunk_count = nullptr);

 private:
  const TemporaryFolder folder_;
  std::string token_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::KvDepotService::Stub> stub_;
};

// A single-message Append, Attend, Decode of `session`.
v1::AppendRequest AppendOf(const v1::Session& session, v1::TokenChunk chunk);
v1::AttendRequest AttendOf(const v1::Session& session, int layer, v1::QueryTokens queries);
v1::DecodeRequest DecodeOf(const v1::Session& session, int layer, int position, int count);

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_SERVICES_TEST_DAEMON_H_
