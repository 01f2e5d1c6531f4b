// A client that is killed in the middle of an Append: the tokens that the daemon had accepted stay,
// the session is free for the next writer, and no memory stays reserved.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/integration/metric.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr char kPeer[] = "tests/integration/appending_peer";
constexpr int kTokens = 200;

pid_t StartPeer(const std::string& address, const v1::Session& session) {
  std::string program = kPeer, to = address, id = session.id();
  std::string generation = absl::StrCat(session.generation());
  char* const arguments[] = {&program[0], &to[0], &id[0], &generation[0], nullptr};
  pid_t peer = 0;
  EXPECT_EQ(posix_spawn(&peer, kPeer, nullptr, nullptr, arguments, environ), 0);
  return peer;
}

TEST(KilledPeer, LeavesItsTokensAndAFreeSession) {
  TestDaemon daemon(
      [](Options& options, const std::string&) { options.metrics_address = "127.0.0.1:0"; });
  const std::string& metrics = daemon.server().metrics_address();
  const v1::Session session = daemon.CreateSession("chat");
  const v1::AppendRequest repeated = AppendOf(session, Chunk(0, 0, 1));
  const pid_t peer = StartPeer(daemon.server().addresses()[0], session);
  int state = 0;
  while (daemon.GetSession(session.id()).layer_states(0).token_count() < kTokens) {
    ASSERT_EQ(waitpid(peer, &state, WNOHANG), 0) << "the peer ended by itself";
  }
  EXPECT_EQ(daemon.Append({repeated}).error_code(), grpc::StatusCode::UNAVAILABLE);
  ASSERT_EQ(kill(peer, SIGKILL), 0);
  ASSERT_EQ(waitpid(peer, &state, 0), peer);

  // The daemon learns of it a little later.
  grpc::Status status;
  do {
    status = daemon.Append({repeated});
  } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(status.ok()) << status.error_message();
  v1::FetchRequest request;
  request.set_session_id(session.id());
  v1::TokenChunk tokens;
  ASSERT_TRUE(daemon.Fetch(request, &tokens).ok());
  EXPECT_EQ(tokens.k(), Chunk(0, 0, kTokens).k());
  EXPECT_EQ(tokens.v(), Chunk(0, 0, kTokens).v());
  EXPECT_EQ(Metric(metrics, "kvdepot_rpc_handled_total{code=\"CANCELLED\",method=\"Append\"}"), 1);

  const double stored = static_cast<double>(daemon.GetSession(session.id()).stored_bytes());
  EXPECT_GT(stored, 0);
  EXPECT_EQ(Metric(metrics, "kvdepot_memory_used_bytes"), stored);
  v1::DeleteSessionRequest remove;
  remove.set_session_id(session.id());
  v1::DeleteSessionResponse removed;
  Context context;
  ASSERT_TRUE(daemon.stub().DeleteSession(context.get(), remove, &removed).ok());
  EXPECT_EQ(Metric(metrics, "kvdepot_memory_used_bytes"), 0);
}

}  // namespace
}  // namespace kvdepot
