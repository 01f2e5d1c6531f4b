// What becomes of segments that a Commit has made due, by what comes between its answer and them.
#include "server/background_seal.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/server/engine_mapped_fixture.h"
#include "tests/server/gate.h"
#include "tests/server/gated_backend.h"

namespace kvdepot {
namespace {

// Where the first of some segments that a Commit has made due is held on its way.
class BackgroundSealTest : public EngineMappedTest {
 protected:
  BackgroundSealTest()
      : EngineMappedTest(std::make_unique<GatedBackend>(MakeCpuBackend(1), &gate_)) {
    gate_.Close();
  }
  // Else the engine would wait for it in the end.
  ~BackgroundSealTest() override { gate_.Open(); }

  // The answer.
  MapReply CommitUpToTheGate(uint64_t token_count) {
    EXPECT_TRUE(Map(lease_, session_.id, true, 0, token_count).ok());
    const absl::StatusOr<MapReply> committed = Commit(lease_, session_.id, 1, token_count);
    EXPECT_TRUE(committed.ok()) << committed.status();
    gate_.WaitUntilReached();
    return *committed;
  }
  void Truncate(uint64_t token_count, Pending<SessionInfo>* result) {
    Caller caller = engine_.caller();
    caller.lease_id = lease_.id;
    engine_->TruncateSession(caller, session_.id, 1, token_count, result->done());
  }
  uint64_t SealedEnd() { return engine_.Get(session_.id).layers[0].sealed_end; }
  void WaitUntilSealed(uint64_t sealed_end) {
    while (SealedEnd() < sealed_end) engine_->ExpireLeases();
  }

  static bool IsExact(const MapReply& reply) {
    const std::vector<TokenRun>& runs = reply.directory->layers[0].runs;
    return std::all_of(runs.begin(), runs.end(),
                       [](const TokenRun& run) { return run.form == TokenRun::Form::kExact; });
  }

  static Gate gate_;
  const SessionInfo session_ = Create("chat");
  const TestLease lease_ = Open();
};
Gate BackgroundSealTest::gate_;

TEST_F(BackgroundSealTest, ACommitDoesNotWaitForWhatItSeals) {
  const MapReply committed = CommitUpToTheGate(1500);
  EXPECT_EQ(committed.directory->token_count, 1500u);
  EXPECT_TRUE(IsExact(committed));
  EXPECT_FALSE(committed.directory->layers[0].room.empty());
  EXPECT_EQ(SealedEnd(), 0u);
  gate_.Open();
  const auto next = Commit(lease_, session_.id, 1, 1500);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_FALSE(IsExact(*next));
  EXPECT_GT(SealedEnd(), 1000u);
}

// It cuts into the second segment.
TEST_F(BackgroundSealTest, ATruncationMeanwhileKeepsSealedWhatWasDue) {
  CommitUpToTheGate(3000);
  Pending<SessionInfo> truncated;
  Truncate(1200, &truncated);
  gate_.Open();
  const auto after = truncated.Wait();
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->committed_token_count, 1200u);
  EXPECT_EQ(after->layers[0].sealed_end, 1200u);
}

TEST_F(BackgroundSealTest, ARefusedCallMeanwhileLeavesNothingDue) {
  CommitUpToTheGate(3000);
  Pending<SessionInfo> refused;
  Truncate(4000, &refused);
  EXPECT_TRUE(absl::IsOutOfRange(refused.Wait().status()));
  gate_.Open();
  WaitUntilSealed(2000);
}

TEST_F(BackgroundSealTest, ATakeOverMeanwhileLeavesNothingDue) {
  CommitUpToTheGate(3000);
  engine_->EndLease(lease_.id, absl::CancelledError("gone"));
  engine_->ExpireLeases();
  gate_.Open();
  TickUntilGeneration(session_.id, 2);
  WaitUntilSealed(2000);
  engine_->ReleaseLease(lease_.id);
}

// It lasts for many pieces of work, between which the seal would have its turns.
TEST_F(BackgroundSealTest, AnAppendMeanwhileLeavesNothingDueInTheEnd) {
  CommitUpToTheGate(3000);
  ASSERT_TRUE(engine_->UnmapSession(engine_.caller(), lease_.id, session_.id).ok());
  auto addition = engine_->BeginAppend(engine_.caller(), session_.id, 1);
  ASSERT_TRUE(addition.ok()) << addition.status();
  gate_.Open();
  // The second one stands in the queue behind what the first one found there.
  const SessionInfo other = Create("other");
  std::mt19937 random(1);
  for (uint64_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(engine_.Append(other, 0, i, {RandomTokens(random, kShape, 1)}).ok());
  }
  EXPECT_LT(SealedEnd(), 2000u);
  *addition = nullptr;
  WaitUntilSealed(2000);
}

TEST_F(BackgroundSealTest, ADeletedSessionIsSealedNoFurther) {
  CommitUpToTheGate(5000);
  ASSERT_TRUE(engine_->DeleteSession(engine_.caller(), session_.id).ok());
  gate_.Open();
  ASSERT_TRUE(engine_->UnmapSession(engine_.caller(), lease_.id, session_.id).ok());
  // Until it has let go of the session.
  while (engine_->used_bytes() > 0) engine_->ExpireLeases();
  EXPECT_LE(engine_.counts().raw_segments, 1);
}

class LittleMemoryTest : public EngineMappedTest {
 protected:
  LittleMemoryTest() : EngineMappedTest(Options()) {}
  static EngineOptions Options() {
    EngineOptions options;
    options.budget_bytes = 1700 * kTokenBytes;
    return options;
  }
};

// Twice the room of 600, and what the segments will take as long as they may turn out raw, do not
// fit beside each other.
TEST_F(LittleMemoryTest, WhereMemoryIsShortSealingComesBeforeTheAnswer) {
  const SessionInfo session = Create("chat", Codec::kPlanes);
  const TestLease lease = Open();
  const auto mapped = Map(lease, session.id, true, 0, 600);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const ExtentRef& extent : mapped->directory->layers[0].room) {
    auto* const values = reinterpret_cast<float*>(extent->data());
    std::generate_n(values, extent->memory->size_bytes() / sizeof(float),
                    [&] { return normal(random); });
  }
  const auto committed = Commit(lease, session.id, 1, 600);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(engine_.counts().planes_segments, 1);
  const Directory::Layer& layer = committed->directory->layers[0];
  EXPECT_EQ(layer.runs[1].form, TokenRun::Form::kPlanes);
  uint64_t room = 0;
  for (const ExtentRef& extent : layer.room) room += extent->memory->size_bytes() / kTokenBytes;
  EXPECT_EQ(room, 9u * 64);
}

}  // namespace
}  // namespace kvdepot
