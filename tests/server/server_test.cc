// The daemon around its service: listeners, health, metrics, expiry, drain, and what stops it from
// starting.
#include "server/server.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gpu/backend_factory.h"
#include "gtest/gtest.h"
#include "server/unix_socket.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// One call with bytes in and out: health's and reflection's protos are not packaged here.
grpc::Status CallWithBytes(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                           const std::string& request, std::string* reply) {
  grpc::GenericStub stub(channel);
  grpc::CompletionQueue queue;
  Context context;
  const grpc::Slice slice(request);
  grpc::ByteBuffer bytes(&slice, 1), received;
  const auto call = stub.PrepareUnaryCall(context.get(), method, bytes, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&received, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  grpc::Slice single;
  if (status.ok() && received.DumpToSingleSlice(&single).ok()) {
    reply->assign(reinterpret_cast<const char*>(single.begin()), single.size());
  }
  return status;
}

// grpc.health.v1: 1 is SERVING, 2 is NOT_SERVING; 0 if the call fails.
int Health(const TestDaemon& daemon, const std::string& service) {
  const std::string request =
      service.empty()
          ? ""
          : absl::StrCat("\x0A", std::string(1, static_cast<char>(service.size())), service);
  std::string reply;
  const grpc::Status status =
      CallWithBytes(daemon.channel(), "/grpc.health.v1.Health/Check", request, &reply);
  return status.ok() && reply.size() == 2 ? reply[1] : 0;
}

TEST(Server, AnswersHealthChecks) {
  const TestDaemon daemon;
  EXPECT_EQ(Health(daemon, ""), 1);
  EXPECT_EQ(Health(daemon, "kvdepot.v1.KvDepotService"), 1);
  EXPECT_EQ(Health(daemon, "other"), 0);
}

TEST(Server, DescribesItself) {
  const TestDaemon daemon;
  std::string reply;
  // ServerReflectionRequest{list_services: ""}; the reply holds the names.
  const grpc::Status status = CallWithBytes(
      daemon.channel(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
      std::string("\x3A\x00", 2), &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(absl::StrContains(reply, "kvdepot.v1.KvDepotService"));
}

TEST(Server, ItsSocketIsItsOwnersAlone) {
  const TestDaemon daemon;
  struct stat info = {};
  ASSERT_EQ(stat(UnixSocketPath(daemon.server().addresses()[0]).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(Server, ASecondDaemonDoesNotTakeTheSocket) {
  const TestDaemon daemon;
  Options options;
  options.listen = daemon.server().addresses()[0];
  options.metrics_address = "";
  options.threads = 1;
  const absl::Status status = Server::Start(options).status();
  EXPECT_TRUE(absl::StrContains(status.message(), "another process listens there")) << status;
  EXPECT_EQ(Health(daemon, ""), 1);
}

// A device of which clients of a daemon that is gone hold all but a part.
class PinnedBackend final : public ForwardingBackend {
 public:
  PinnedBackend(std::unique_ptr<Backend> to, const uint64_t* free_bytes)
      : ForwardingBackend(std::move(to)), free_bytes_(free_bytes) {}
  uint64_t memory_bytes() const override { return *free_bytes_; }

 private:
  const uint64_t* const free_bytes_;
};

class ServerMemoryTest : public testing::Test {
 protected:
  ServerMemoryTest() {
    hooks_.make_backend = [this](const BackendOptions& options) {
      return absl::StatusOr<std::unique_ptr<Backend>>(
          std::make_unique<PinnedBackend>(*MakeBackend(options), &free_bytes_));
    };
    hooks_.pause = [this](absl::Duration) {
      ++pauses_;
      free_bytes_ += 16 << 20;
      return true;
    };
  }
  static uint64_t BudgetOf(TestDaemon& daemon) {
    v1::GetServerInfoResponse info;
    Context context;
    EXPECT_TRUE(daemon.stub().GetServerInfo(context.get(), {}, &info).ok());
    return info.budget_bytes();
  }

  Server::Hooks hooks_;
  uint64_t free_bytes_ = 16 << 20;
  int pauses_ = 0;
};

TEST_F(ServerMemoryTest, StartsWithWhatIsFree) {
  TestDaemon daemon([](Options&, const std::string&) {}, hooks_);
  EXPECT_EQ(BudgetOf(daemon), uint64_t{16} << 20);
  EXPECT_EQ(pauses_, 0);
}

TEST_F(ServerMemoryTest, WaitsUntilTheBudgetIsFree) {
  TestDaemon daemon(
      [](Options& options, const std::string&) { options.memory_wait_timeout = absl::Hours(1); },
      hooks_);
  EXPECT_EQ(BudgetOf(daemon), uint64_t{64} << 20);
  EXPECT_EQ(pauses_, 3);
}

TEST(Server, DeletesSessionsWhoseTimeHasCome) {
  TestDaemon daemon;
  v1::CreateSessionRequest request;
  request.set_name("short");
  request.set_dtype(v1::DTYPE_FP32);
  request.mutable_time_to_live()->set_nanos(1'000'000);
  v1::LayerShape* layer = request.add_layers();
  layer->set_kv_heads(1);
  layer->set_query_heads(1);
  layer->set_head_dim(64);
  v1::CreateSessionResponse created;
  Context context;
  ASSERT_TRUE(daemon.stub().CreateSession(context.get(), request, &created).ok());
  // Expired at once for whoever asks by name; its memory goes with the next round of the clock.
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  v1::ListSessionsResponse listed;
  do {
    Context list_context;
    ASSERT_TRUE(daemon.stub().ListSessions(list_context.get(), {}, &listed).ok());
  } while (listed.sessions_size() > 0 && absl::Now() < deadline);
  EXPECT_EQ(listed.sessions_size(), 0);
}

TEST(Server, DrainRefusesNewWorkAndEndsIdleStreams) {
  TestDaemon daemon;
  const v1::Session session = daemon.CreateSession("chat");
  Context context;
  const auto idle = daemon.stub().Decode(context.get());
  ASSERT_TRUE(idle->Write(DecodeOf(session, 0, 0, 1)));
  v1::DecodeResponse response;
  ASSERT_TRUE(idle->Read(&response));

  std::thread drain([&] { daemon.server().Drain(); });
  // Until the listener is gone, what is refused is refused for the right reason.
  grpc::Status status;
  while ((status = daemon.AppendTokens(session, 0, 1)).ok()) {
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  drain.join();
  idle->WritesDone();
  EXPECT_FALSE(idle->Finish().ok());
}

TEST(Server, NamesWhatKeepsItFromStarting) {
  const auto start = [](const std::function<void(Options&)>& change) {
    Options options;
    options.listen = "unix:///nonexistent/folder/socket";
    options.metrics_address = "";
    options.threads = 1;
    change(options);
    return std::string(Server::Start(options).status().message());
  };
  EXPECT_TRUE(absl::StrContains(start([](Options&) {}), "listen: /nonexistent/folder"));
  EXPECT_TRUE(absl::StrContains(start([](Options& options) { options.tokens_file = "/none"; }),
                                "tokens_file: /none"));
  EXPECT_TRUE(absl::StrContains(start([](Options& options) { options.calibrations_dir = "/none"; }),
                                "calibrations_dir: /none"));
}

}  // namespace
}  // namespace kvdepot
