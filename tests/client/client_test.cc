// What the client does with a daemon's answers: retries, deadlines, chunks, pages. The daemon is a
// fake that fails by script; no test measures time except against a deadline far away.
#include "client/client.h"

#include <string>

#include "absl/time/clock.h"
#include "client/retry.h"
#include "gtest/gtest.h"
#include "tests/client/fake_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

class ClientTest : public ::testing::Test {
 protected:
  std::unique_ptr<Client> Connect(const Client::Options& options = {}) {
    absl::StatusOr<std::unique_ptr<Client>> client =
        Client::Connect(daemon_.target(), options, Soon());
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  FakeDaemon daemon_;
};

TEST_F(ClientTest, ConnectAsksForTheLimits) {
  EXPECT_EQ(Connect()->server_info().limits().message_bytes_max(), FakeDaemon::kMessageBytesMax);
}

TEST_F(ClientTest, ConnectToNobodyFailsLongBeforeAFarDeadline) {
  const absl::Time start = absl::Now();
  const auto client =
      Client::Connect("unix:///tmp/kvdepot-nobody-listens-here", {}, start + absl::Minutes(10));
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - start, absl::Minutes(1));
}

TEST_F(ClientTest, TokenTravelsAsBearer) {
  Client::Options options;
  options.token = "secret";
  Connect(options);
  EXPECT_EQ(daemon_.Authorization(), "Bearer secret");
  Connect();
  EXPECT_EQ(daemon_.Authorization(), "");
}

TEST_F(ClientTest, ReadsAreRetriedAsTheDaemonAsks) {
  const auto client = Connect();
  daemon_.Script("GetSession", std::deque<grpc::Status>(10, UnavailableFor(1)));
  const auto session = client->GetSession("id", Soon());
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->id(), "id");
  EXPECT_EQ(daemon_.Calls("GetSession"), 11);
}

TEST_F(ClientTest, OtherErrorsAreNotRetriedAndKeepTheirDetails) {
  const auto client = Connect();
  daemon_.Script("GetSession", {grpc::Status(grpc::StatusCode::NOT_FOUND, "session_id: id")});
  const auto session = client->GetSession("id", Soon());
  EXPECT_EQ(session.status(), absl::NotFoundError("session_id: id"));
  EXPECT_EQ(daemon_.Calls("GetSession"), 1);
}

TEST_F(ClientTest, TruncateIsNeverRetried) {
  const auto client = Connect();
  daemon_.Script("TruncateSession", {UnavailableFor(1)});
  const auto session = client->TruncateSession({"id", 1}, 5, Soon());
  EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(daemon_.Calls("TruncateSession"), 1);
}

TEST_F(ClientTest, PassedDeadlineEndsTheCall) {
  const auto client = Connect();
  const auto session = client->GetSession("id", absl::Now() - absl::Seconds(1));
  EXPECT_EQ(session.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(daemon_.Calls("GetSession"), 0);
}

TEST_F(ClientTest, RetriesEndBeforeTheDeadline) {
  const auto client = Connect();
  daemon_.Script("GetSession", std::deque<grpc::Status>(1000, UnavailableFor(300)));
  const absl::Time deadline = absl::Now() + absl::Seconds(1);
  const auto session = client->GetSession("id", deadline);
  // The daemon's word is worth more to the caller than "deadline exceeded".
  EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(session.status().message(), "busy");
  EXPECT_LT(daemon_.Calls("GetSession"), 5);
}

TEST_F(ClientTest, DeleteThatIsGoneAfterARetrySucceeded) {
  const auto client = Connect();
  const grpc::Status gone(grpc::StatusCode::NOT_FOUND, "session_id: id");
  daemon_.Script("DeleteSession", {UnavailableFor(1), gone});
  EXPECT_TRUE(client->DeleteSession("id", Soon()).ok());
  daemon_.Script("DeleteSession", {gone});
  EXPECT_EQ(client->DeleteSession("id", Soon()).code(), absl::StatusCode::kNotFound);
}

TEST_F(ClientTest, ListCollectsAllPages) {
  const auto sessions = Connect()->ListSessions(Soon());
  ASSERT_TRUE(sessions.ok()) << sessions.status();
  ASSERT_EQ(sessions->size(), 2u);
  EXPECT_EQ((*sessions)[0].name(), "first");
  EXPECT_EQ((*sessions)[1].name(), "second");
}

TEST_F(ClientTest, AppendCutsArraysIntoMessagesAndNamesTheSessionOnce) {
  const auto client = Connect();
  constexpr uint64_t kTokens = 1000;
  std::string k(kTokens * 256, '\0');
  std::string v(kTokens * 256, '\0');
  for (size_t i = 0; i < k.size(); ++i) {
    k[i] = static_cast<char>(i * 7 + i / 256);
    v[i] = static_cast<char>(i * 3 + i / 256);
  }
  const std::vector<LayerTokens> layers = {{0, 40, kTokens, k, v, {}}, {1, 40, kTokens, k, v, {}}};
  const auto response = client->Append({"id", 9}, layers, Soon());
  ASSERT_TRUE(response.ok()) << response.status();

  std::string k_received[2];
  std::string v_received[2];
  const std::vector<v1::AppendRequest> messages = daemon_.Appended();
  ASSERT_GT(messages.size(), 2u);
  for (size_t i = 0; i < messages.size(); ++i) {
    const v1::TokenChunk& chunk = messages[i].chunk();
    EXPECT_LE(messages[i].ByteSizeLong(), FakeDaemon::kMessageBytesMax);
    EXPECT_EQ(messages[i].session_id(), i == 0 ? "id" : "");
    EXPECT_EQ(messages[i].generation(), i == 0 ? 9u : 0u);
    EXPECT_EQ(chunk.position(), 40 + k_received[chunk.layer()].size() / 256);
    EXPECT_EQ(chunk.k().size(), chunk.token_count() * 256);
    k_received[chunk.layer()] += chunk.k();
    v_received[chunk.layer()] += chunk.v();
  }
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(k_received[layer], k);
    EXPECT_EQ(v_received[layer], v);
  }
}

TEST_F(ClientTest, AppendThatIsRefusedMidwaySendsAllAgain) {
  const auto client = Connect();
  const std::string bytes(4096 * 256, 'x');
  daemon_.Script("Append", {UnavailableFor(1), UnavailableFor(1)});
  const auto response =
      client->Append({"id", 1}, {LayerTokens{0, 0, 4096, bytes, bytes, {}}}, Soon());
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(daemon_.Calls("Append"), 3);
  EXPECT_EQ(daemon_.Appended().front().session_id(), "id");
}

TEST_F(ClientTest, AppendThatFitsNoMessageIsRefusedBeforeAnythingIsSent) {
  const auto client = Connect();
  const std::string row(FakeDaemon::kMessageBytesMax, 'x');
  EXPECT_EQ(client->Append({"id", 1}, {LayerTokens{0, 0, 1, row, row, {}}}, Soon()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(
      client->Append({"id", 1}, {LayerTokens{0, 0, 3, "abcd", "abcd", {}}}, Soon()).status().code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(daemon_.Calls("Append"), 0);
}

TEST_F(ClientTest, FetchFillsBuffersAndStartsOverAfterABreak) {
  const auto client = Connect();
  daemon_.Script("Fetch", {UnavailableFor(1)});
  std::string k(6, '.');
  std::string v(6, '.');
  const auto count = client->Fetch({}, absl::MakeSpan(k), absl::MakeSpan(v), Soon());
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_EQ(*count, 3u);
  EXPECT_EQ(k, "ababab");
  EXPECT_EQ(v, "cdcdcd");
}

TEST_F(ClientTest, FetchNeverWritesPastABuffer) {
  const auto client = Connect();
  std::string k(5, '.');
  std::string v(6, '.');
  const auto count = client->Fetch({}, absl::MakeSpan(k), absl::MakeSpan(v), Soon());
  EXPECT_EQ(count.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ClientTest, DecodeAnswersStepByStepUntilAnErrorThatStays) {
  const auto stream = Connect()->OpenDecode(Soon());
  v1::DecodeRequest request;
  for (const uint32_t layer : {1u, 2u, 3u}) {
    request.set_layer(layer);
    const auto response = stream->Step(request);
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->items(0).token_count(), layer);
  }
  request.set_layer(7);
  EXPECT_EQ(stream->Step(request).status(), absl::AbortedError("generation: 1"));
  EXPECT_EQ(stream->Step(request).status(), absl::AbortedError("generation: 1"));
  EXPECT_EQ(stream->Finish(), absl::AbortedError("generation: 1"));
}

TEST_F(ClientTest, DecodeEndsWellAndThenTakesNoStep) {
  const auto stream = Connect()->OpenDecode(Soon());
  ASSERT_TRUE(stream->Step({}).ok());
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(stream->Step({}).status().code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace kvdepot
