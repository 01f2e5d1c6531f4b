// Many threads on few sessions: every call gets one outcome, and what every outcome promises holds.
// Run it under ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 2, 64, 0, 0};

// What a call may give while others change the same session, delete it or fill the budget.
bool IsExpected(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return false;
  }
}

// One client: random calls on the sessions of its tenant.
class Client {
 public:
  Client(TestEngine* engine, unsigned seed)
      : engine_(*engine), random_(seed), tokens_(RandomTokens(random_, kShape, 300)) {
    caller_.tenant = absl::StrCat("tenant", seed % 2);
    q_ = RandomQueries(random_, kShape, 4);
  }

  void Run(int calls) {
    for (int i = 0; i < calls; ++i) {
      const absl::Status status = Call(random_() % 12);
      ASSERT_TRUE(IsExpected(status)) << status;
    }
  }

 private:
  absl::Status Call(unsigned kind) {
    bool created = false;
    const SessionSpec spec = Spec(absl::StrCat("s", random_() % 3), Codec::kPlanes, kShape);
    absl::StatusOr<SessionInfo> session = engine_->CreateSession(caller_, spec, &created);
    if (!session.ok()) return session.status();
    const uint64_t count = session->committed_token_count;
    switch (kind) {
      case 0:
        return engine_->DeleteSession(caller_, session->id);
      case 1: {
        Pending<SessionInfo> pending;
        engine_->TruncateSession(caller_, session->id, session->generation, random_() % (count + 1),
                                 pending.done());
        return pending.Wait().status();
      }
      case 2: {
        Pending<SessionInfo> pending;
        engine_->SealSession(caller_, session->id, session->generation, pending.done());
        return pending.Wait().status();
      }
      case 3:
        engine_->CheckInvariants();
        engine_->ExpireSessions();
        engine_->totals();
        engine_->ListSessions(caller_, "", 10);
        return absl::OkStatus();
      case 4:
      case 5: {
        Pending<FetchedTokens> pending;
        engine_->Fetch(caller_, {session->id, 0, 0, 0, DType::kBf16}, pending.done());
        return pending.Wait().status();
      }
      case 6:
      case 7:
        return Append(*session);
      case 8:
      case 9: {
        Pending<std::vector<AttendResult>> pending;
        engine_->Attend(caller_, 0, 0, {Query(session->id, kShape, q_)}, pending.done());
        return pending.Wait().status();
      }
      default: {
        ModelTokens tokens;
        tokens.k.assign(tokens_.k.begin(), tokens_.k.begin() + 4 * 64);
        tokens.v.assign(tokens_.v.begin(), tokens_.v.begin() + 4 * 64);
        Pending<std::vector<AttendResult>> pending;
        engine_->Decode(caller_, 0, 0, {Step(*session, 0, count, kShape, tokens, q_)},
                        pending.done());
        return pending.Wait().status();
      }
    }
  }

  absl::Status Append(const SessionInfo& session) {
    auto addition = engine_->BeginAppend(caller_, session.id, session.generation);
    if (!addition.ok()) return addition.status();
    const auto stored =
        engine_.AppendChunk(**addition, Chunk(0, session.committed_token_count, kShape, tokens_));
    if (!stored.ok() || random_() % 4 == 0) return stored.status();
    return engine_.Finish(**addition).status();
  }

  TestEngine& engine_;
  Caller caller_;
  std::mt19937 random_;
  const ModelTokens tokens_;
  std::vector<float> q_;
};

TEST(EngineConcurrencyTest, ClientsDoNotDisturbEachOther) {
  EngineOptions options;
  options.budget_bytes = uint64_t{2} << 20;
  options.tenant_quota_bytes = uint64_t{5} << 18;
  options.work_piece_row_tokens = 1000;
  TestEngine engine(options);
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&engine, seed] { Client(&engine, seed).Run(150); });
  }
  for (std::thread& thread : threads) thread.join();
  engine->CheckInvariants();
  for (const char* tenant : {"tenant0", "tenant1"}) {
    Caller caller;
    caller.tenant = tenant;
    for (const SessionInfo& session : engine->ListSessions(caller, "", 10)) {
      EXPECT_TRUE(engine->DeleteSession(caller, session.id).ok());
    }
  }
  EXPECT_EQ(engine->used_bytes(), 0u);
}

TEST(EngineConcurrencyTest, DrainingWaitsForWhatIsInFlight) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 200)}).ok());
  const std::vector<float> q = RandomQueries(random, kShape, 100);
  std::atomic<int> results{0};
  for (int i = 0; i < 50; ++i) {
    engine->Attend(engine.caller(), 0, 0, {Query(session.id, kShape, q)},
                   [&results](const absl::StatusOr<std::vector<AttendResult>>& result) {
                     if (result.ok()) ++results;
                   });
  }
  engine->Drain(absl::InfiniteFuture());
  EXPECT_EQ(results, 50);
}

}  // namespace
}  // namespace kvdepot
