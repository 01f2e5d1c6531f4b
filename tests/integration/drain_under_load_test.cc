// The end of a daemon that many clients use: what it accepted is answered, what it did not is
// refused with words that say so, and it ends in time.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cli/http_get.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/integration/metric.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr int kClientsOfAKind = 4;
constexpr int kStoredTokens = 512;
constexpr absl::Duration kDrainTimeout = absl::Seconds(20);

// Whether it is the refusal of a daemon that drains, which names the time to come again.
bool IsDraining(const grpc::Status& status) {
  google::rpc::Status rich;
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE ||
      !rich.ParseFromString(status.error_details()) || rich.details_size() != 2) {
    return false;
  }
  google::rpc::ErrorInfo info;
  google::rpc::RetryInfo retry;
  return rich.details(0).UnpackTo(&info) && info.reason() == "DRAINING" &&
         rich.details(1).UnpackTo(&retry) && retry.retry_delay().seconds() == 1;
}

class DrainUnderLoadTest : public testing::Test {
 protected:
  DrainUnderLoadTest()
      : daemon_([](Options& options, const std::string&) {
          options.metrics_address = "127.0.0.1:0";
          options.drain_timeout = kDrainTimeout;
          // A Fetch of all tokens is several messages.
          options.engine.fetch_bytes_max = 64 << 10;
        }) {}

  // Calls `once` again and again, on a thread, until it fails.
  void Start(std::function<grpc::Status()> once) {
    clients_.emplace_back([this, once = std::move(once)] {
      while (true) {
        const grpc::Status status = once();
        if (!status.ok()) {
          EXPECT_TRUE(IsDraining(status)) << status.error_code() << " " << status.error_message();
          return;
        }
        ++answered_;
      }
    });
  }
  void StartAll() {
    for (int i = 0; i < kClientsOfAKind; ++i) {
      const v1::Session session = daemon_.CreateSession(absl::StrCat("client ", i));
      ASSERT_TRUE(daemon_.AppendTokens(session, 0, kStoredTokens).ok());
      sessions_.push_back(session);
      Start([this, session] { return daemon_.Attend(AttendOf(session, 0, Queries(1, 8))); });
      Start([this, session] {
        v1::FetchRequest fetch;
        fetch.set_session_id(session.id());
        v1::TokenChunk tokens;
        const grpc::Status status = daemon_.Fetch(fetch, &tokens);
        EXPECT_TRUE(!status.ok() || tokens.token_count() == kStoredTokens);
        return status;
      });
      const v1::Session grows = daemon_.CreateSession(absl::StrCat("grows ", i));
      auto position = std::make_shared<int>(0);
      Start([this, grows, position] {
        const grpc::Status status = daemon_.AppendTokens(grows, *position, 3);
        if (status.ok()) *position += 3;
        return status;
      });
      growing_.emplace_back(grows, position);
    }
  }
  double Handled(const std::string& method, const std::string& code) const {
    return Metric(
        daemon_.server().metrics_address(),
        absl::StrCat("kvdepot_rpc_handled_total{code=\"", code, "\",method=\"", method, "\"}"));
  }

  TestDaemon daemon_;
  std::vector<v1::Session> sessions_;
  std::vector<std::pair<v1::Session, std::shared_ptr<int>>> growing_;
  std::vector<std::thread> clients_;
  std::atomic<int> answered_{0};
};

TEST_F(DrainUnderLoadTest, EveryAnswerThatTheDaemonGaveArrives) {
  StartAll();
  while (answered_ < 300) absl::SleepFor(absl::Milliseconds(1));
  const absl::Time start = absl::Now();
  daemon_.server().Drain();
  EXPECT_LT(absl::Now() - start, kDrainTimeout);
  for (std::thread& client : clients_) client.join();
  // What the daemon has done, and what clients have heard of: one number.
  const double stored = kClientsOfAKind;  // StartAll's own.
  EXPECT_EQ(Handled("Attend", "OK") + Handled("Fetch", "OK") + Handled("Append", "OK") - stored,
            answered_);
  for (const char* method : {"Attend", "Fetch", "Append"}) {
    EXPECT_EQ(Handled(method, "CANCELLED"), 0) << method;
    EXPECT_EQ(Handled(method, "INTERNAL"), 0) << method;
    EXPECT_GT(Handled(method, "UNAVAILABLE"), 0) << method;
  }
}

TEST_F(DrainUnderLoadTest, StreamsThatHaveBegunGoOnToTheirEnd) {
  const v1::Session session = daemon_.CreateSession("chat");
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, kStoredTokens).ok());
  Context append_context, fetch_context;
  v1::AppendResponse appended;
  const v1::Session other = daemon_.CreateSession("other");
  const auto append = daemon_.stub().Append(append_context.get(), &appended);
  ASSERT_TRUE(append->Write(AppendOf(other, Chunk(0, 0, 10))));
  while (daemon_.GetSession(other.id()).layer_states(0).token_count() < 10) {
  }
  v1::FetchRequest fetch;
  fetch.set_session_id(session.id());
  const auto reader = daemon_.stub().Fetch(fetch_context.get(), fetch);
  v1::FetchResponse piece;
  ASSERT_TRUE(reader->Read(&piece));
  uint64_t fetched = piece.chunk().token_count();
  ASSERT_LT(fetched, static_cast<uint64_t>(kStoredTokens));

  std::thread drain([this] { daemon_.server().Drain(); });
  while (!IsDraining(daemon_.Attend(AttendOf(session, 0, Queries(1, 1))))) {
  }
  // Nothing of either has moved since.
  v1::AppendRequest more;
  *more.mutable_chunk() = Chunk(0, 10, 5);
  EXPECT_TRUE(append->Write(more));
  append->WritesDone();
  const grpc::Status end = append->Finish();
  EXPECT_TRUE(end.ok()) << end.error_message();
  EXPECT_EQ(appended.layers(0).state().token_count(), 15u);
  while (reader->Read(&piece)) fetched += piece.chunk().token_count();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(fetched, static_cast<uint64_t>(kStoredTokens));
  drain.join();
}

TEST(DrainTimeout, EndsTheWaitForAClientThatDoesNotGoOn) {
  TestDaemon daemon(
      [](Options& options, const std::string&) { options.drain_timeout = absl::Seconds(1); });
  const v1::Session session = daemon.CreateSession("chat");
  Context context;
  v1::AppendResponse appended;
  const auto append = daemon.stub().Append(context.get(), &appended);
  ASSERT_TRUE(append->Write(AppendOf(session, Chunk(0, 0, 10))));
  while (daemon.GetSession(session.id()).layer_states(0).token_count() < 10) {
  }
  const absl::Time start = absl::Now();
  daemon.server().Drain();
  EXPECT_GE(absl::Now() - start, absl::Seconds(1));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_FALSE(append->Finish().ok());
}

}  // namespace
}  // namespace kvdepot
