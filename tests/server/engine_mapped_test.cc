// Leases and mapped sessions in the engine, with a clock that stands still: what is held, for how
// long, and who may write.
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "server/lease_table.h"
#include "tests/server/engine_mapped_fixture.h"
#include "tests/server/late_backend.h"

namespace kvdepot {
namespace {

using MappingErrors = std::vector<std::pair<MappingOperation, absl::StatusCode>>;

class EngineMappedLateTest : public EngineMappedTest {
 protected:
  EngineMappedLateTest() : EngineMappedTest(std::make_unique<LateBackend>(&copies_)) {}

  static std::atomic<int> copies_;
};
std::atomic<int> EngineMappedLateTest::copies_{0};

TEST_F(EngineMappedLateTest, NobodyIsShownWhatTheDeviceStillCopies) {
  const SessionInfo session = Create("chat");
  const TestLease writer = Open();
  ASSERT_TRUE(Map(writer, session.id, true).ok());
  ASSERT_TRUE(Commit(writer, session.id, 1, 100).ok());
  const TestLease reader = Open();
  ASSERT_TRUE(Map(reader, session.id, false).ok());
  // The writer goes: what it may still write to is replaced by copies.
  engine_->EndLease(writer.id, absl::CancelledError("gone"));
  TickUntilGeneration(session.id, 2);
  EXPECT_GT(copies_, 0);
  ASSERT_TRUE(Map(reader, session.id, false).ok());
  EXPECT_EQ(copies_, 0);
  // A truncation inside an extent copies what stays.
  const TestLease next = Open();
  ASSERT_TRUE(Map(next, session.id, true).ok());
  Pending<SessionInfo> truncated;
  Caller caller = engine_.caller();
  caller.lease_id = next.id;
  engine_->TruncateSession(caller, session.id, engine_.Get(session.id).generation, 90,
                           truncated.done());
  ASSERT_TRUE(truncated.Wait().ok());
  EXPECT_GT(copies_, 0);
  ASSERT_TRUE(Map(next, session.id, true).ok());
  EXPECT_EQ(copies_, 0);
}

TEST_F(EngineMappedTest, ADirectoryHoldsWhatItListsUntilItIsRetired) {
  const SessionInfo session = Create("chat");
  const TestLease writer = Open();
  const TestLease reader = Open();
  ASSERT_TRUE(Map(writer, session.id, true, 0, 2000).ok());
  ASSERT_TRUE(Commit(writer, session.id, 1, 200).ok());
  const auto before = Map(reader, session.id, false);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(before->directory->token_count, 200u);
  // A prompt: the tail of 184 that the reader was shown is sealed away.
  ASSERT_TRUE(CommitAndSeal(writer, session.id, 1, 1500).ok());
  const auto after = Map(reader, session.id, false, before->directory->version);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after->base, before->directory);
  EXPECT_GT(engine_.Get(session.id).layers[0].sealed_end, 200u);
  const uint64_t held = engine_->used_bytes();
  engine_->CheckInvariants();
  ASSERT_TRUE(engine_->RetireDirectories(writer.id, session.id, after->directory->version).ok());
  EXPECT_EQ(engine_->used_bytes(), held);
  EXPECT_EQ(engine_->mapping_usage().versions_held_back, 1u);
  ASSERT_TRUE(engine_->RetireDirectories(reader.id, session.id, after->directory->version).ok());
  EXPECT_EQ(engine_->mapping_usage().versions_held_back, 0u);
  // This test still holds the directory itself.
  EXPECT_EQ(engine_->used_bytes(), held);
}

TEST_F(EngineMappedTest, ASecondLookAtTheSameTokensIsNoNewVersion) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  const auto first = Map(lease, session.id, false);
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(first->session.has_value());
  const auto second = Map(lease, session.id, false, first->directory->version);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->directory, nullptr);
  EXPECT_FALSE(second->session.has_value());
}

TEST_F(EngineMappedTest, SlabsAreSentOnceALease) {
  const SessionInfo session = Create("chat");
  const TestLease writer = Open();
  ASSERT_TRUE(Map(writer, session.id, true).ok());
  EXPECT_EQ(writer.peer->sent.size(), 1u);
  EXPECT_TRUE(writer.peer->sent[0].writable);
  ASSERT_TRUE(Commit(writer, session.id, 1, 200).ok());
  EXPECT_EQ(writer.peer->sent.size(), 1u);
  for (uint64_t count = 400; count <= 800; count += 200) {
    ASSERT_TRUE(Commit(writer, session.id, 1, count).ok());
  }
  // Sealed segments lie in another one, which nobody may write.
  ASSERT_EQ(writer.peer->sent.size(), 2u);
  EXPECT_FALSE(writer.peer->sent[1].writable);
  EXPECT_EQ(engine_->mapping_usage().mapped_bytes, 2 * kSlabBytesDefault);
  ASSERT_TRUE(engine_->ForgetSlabs(writer.id, {writer.peer->sent[1].serial}).ok());
  EXPECT_EQ(engine_->mapping_usage().mapped_bytes, kSlabBytesDefault);
  EXPECT_TRUE(absl::IsNotFound(engine_->ForgetSlabs(writer.id, {writer.peer->sent[1].serial})));
  ASSERT_TRUE(Commit(writer, session.id, 1, 900).ok());
  EXPECT_EQ(writer.peer->sent.size(), 3u);
}

TEST_F(EngineMappedTest, APeerThatTakesNoSlabGetsTheErrorAndMayTryAgain) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  lease.peer->answer = absl::ResourceExhaustedError("life_socket: full");
  EXPECT_TRUE(absl::IsResourceExhausted(Map(lease, session.id, true).status()));
  EXPECT_EQ(engine_->mapping_usage().mapped_bytes, 0u);
  EXPECT_EQ(engine_.counts().mapping_errors,
            (MappingErrors{{MappingOperation::kSend, absl::StatusCode::kResourceExhausted}}));
  lease.peer->answer = absl::OkStatus();
  EXPECT_TRUE(Map(lease, session.id, true).ok());
}

TEST_F(EngineMappedTest, WhatALeaseDoesWrongIsCounted) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, false).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(
      engine_->AttachLease(lease.id, std::make_shared<RecordingPeer>())));
  EXPECT_TRUE(absl::IsOutOfRange(engine_->RetireDirectories(lease.id, session.id, 100)));
  EXPECT_TRUE(absl::IsNotFound(engine_->ForgetSlabs(lease.id, {12345})));
  EXPECT_EQ(engine_.counts().mapping_errors,
            (MappingErrors{{MappingOperation::kAttach, absl::StatusCode::kFailedPrecondition},
                           {MappingOperation::kRetire, absl::StatusCode::kOutOfRange},
                           {MappingOperation::kForget, absl::StatusCode::kNotFound}}));
}

TEST_F(EngineMappedTest, WithoutAMessageTheRightEndsAndTheRestStays) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, true).ok());
  engine_.clock().Advance(absl::Seconds(9));
  engine_->ExpireLeases();
  EXPECT_FALSE(lease.stream->ended);
  engine_->KeepLease(lease.id);
  engine_.clock().Advance(absl::Seconds(9));
  engine_->ExpireLeases();
  EXPECT_FALSE(lease.stream->ended);
  engine_.clock().Advance(absl::Seconds(1));
  engine_->ExpireLeases();
  EXPECT_TRUE(lease.stream->ended);
  EXPECT_TRUE(absl::IsFailedPrecondition(lease.stream->end_reason));
  EXPECT_TRUE(absl::IsFailedPrecondition(Map(lease, session.id, true).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(lease, session.id, 1, 1).status()));
  EXPECT_GT(engine_->used_bytes(), 0u);
  EXPECT_EQ(engine_->mapping_usage().leases, 0u);
  EXPECT_GT(engine_->mapping_usage().mapped_bytes, 0u);
  TickUntilGeneration(session.id, 2);
  engine_->ReleaseLease(lease.id);
  EXPECT_EQ(engine_->used_bytes(), 0u);
  EXPECT_EQ(engine_->mapping_usage().mapped_bytes, 0u);
  EXPECT_GT(engine_->reclaimed_bytes(), 0u);
}

TEST_F(EngineMappedTest, TheNextWriterGetsACopyOfWhereTheFirstMayStillWrite) {
  const SessionInfo session = Create("chat");
  const TestLease first = Open();
  const auto mapped = Map(first, session.id, true);
  ASSERT_TRUE(mapped.ok());
  const std::vector<ExtentRef>& room = mapped->directory->layers[0].room;
  std::memset(room[0]->data(), 0, 16 * kTokenBytes);
  std::memset(room[1]->data(), 0, 64 * kTokenBytes);
  ASSERT_TRUE(Commit(first, session.id, 1, 20).ok());
  engine_->EndLease(first.id, absl::CancelledError("test"));
  const TestLease second = Open();
  absl::StatusOr<MapReply> next = Map(second, session.id, true);
  while (absl::IsUnavailable(next.status())) next = Map(second, session.id, true);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->directory->generation, 2u);
  EXPECT_EQ(next->directory->token_count, 20u);
  const Directory::Layer& layer = next->directory->layers[0];
  // Full, so nobody writes there.
  EXPECT_EQ(layer.extents[0], room[0]);
  EXPECT_NE(layer.extents[1], room[1]);
  for (const ExtentRef& fresh : layer.room) {
    for (const ExtentRef& old : room) EXPECT_NE(fresh, old);
  }
  // The first one wakes up.
  std::memset(room[1]->data(), 0xFF, 64 * kTokenBytes);
  EXPECT_EQ(engine_.FetchAll(session.id, 0).k, std::vector<float>(20 * 64));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit(first, session.id, 1, 30).status()));
}

TEST_F(EngineMappedTest, AfterAWriterThatUnmappedNothingIsCopied) {
  const SessionInfo session = Create("chat");
  const TestLease first = Open();
  ASSERT_TRUE(Map(first, session.id, true).ok());
  ASSERT_TRUE(Commit(first, session.id, 1, 20).ok());
  const auto before = Map(first, session.id, true);
  ASSERT_TRUE(engine_->UnmapSession(engine_.caller(), first.id, session.id).ok());
  const TestLease second = Open();
  const auto after = Map(second, session.id, true);
  ASSERT_TRUE(after.ok());
  EXPECT_EQ(after->directory->generation, 1u);
  EXPECT_EQ(after->directory->layers[0].extents, before->directory->layers[0].extents);
}

// Whoever may write a slot may write it again, past what Commit has checked.
TEST_F(EngineMappedTest, ATailThatItsWriterPoisonedIsNotTheQuerysFault) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, true).ok());
  const auto committed = Commit(lease, session.id, 1, 100);
  ASSERT_TRUE(committed.ok()) << committed.status();
  // Sinks, then 64 tokens each; of the second the key of token 16 + 5, not its value.
  const ExtentRef tail = committed->directory->layers[0].extents[1];
  reinterpret_cast<float*>(tail->data())[5 * 64 + 3] = std::numeric_limits<float>::quiet_NaN();
  std::mt19937 random(1);
  const std::vector<float> q = RandomQueries(random, kShape, 1);
  EXPECT_EQ(engine_.Attend(0, {Query(session.id, kShape, q)}).status(),
            absl::DataLossError(
                "items[0].tail: k of token 21, KV head 0, is not finite, its mapped writer has "
                "overwritten it: truncate the session there"));
  // The other way round, which no logit shows.
  auto* const values = reinterpret_cast<float*>(tail->data());
  std::swap(values[5 * 64 + 3], values[64 * 64 + 7 * 64]);
  EXPECT_EQ(engine_.Attend(0, {Query(session.id, kShape, q)}).status(),
            absl::DataLossError(
                "items[0].tail: v of token 23, KV head 0, is not finite, its mapped writer has "
                "overwritten it: truncate the session there"));
}

TEST_F(EngineMappedTest, MappedSessionsDoNotExpire) {
  SessionSpec spec = Spec("chat", Codec::kRaw, kShape);
  spec.time_to_live = absl::Seconds(30);
  const SessionInfo session = *engine_.Create(spec);
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, false).ok());
  for (int i = 0; i < 10; ++i) {
    engine_.clock().Advance(absl::Seconds(8));
    engine_->KeepLease(lease.id);
    engine_->ExpireSessions();
  }
  EXPECT_EQ(engine_->session_count(), 1u);
  ASSERT_TRUE(engine_->UnmapSession(engine_.caller(), lease.id, session.id).ok());
  engine_.clock().Advance(absl::Seconds(31));
  engine_->ExpireSessions();
  EXPECT_EQ(engine_->session_count(), 0u);
}

TEST_F(EngineMappedTest, WhatIsSealedIsWhatAppendsOfTheSameSizesSeal) {
  const SessionInfo mapped = Create("mapped");
  const SessionInfo appended = Create("appended");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, mapped.id, true, 0, 4000).ok());
  std::mt19937 random(3);
  uint64_t position = 0;
  for (const uint64_t count : {10, 7, 300, 1, 64, 255, 256, 1500, 3, 200, 200}) {
    ASSERT_TRUE(engine_.Append(appended, 0, position, {RandomTokens(random, kShape, count)}).ok());
    position += count;
    ASSERT_TRUE(CommitAndSeal(lease, mapped.id, 1, position).ok());
    EXPECT_EQ(engine_.Get(mapped.id).layers[0].sealed_end,
              engine_.Get(appended.id).layers[0].sealed_end);
    EXPECT_EQ(engine_.Get(mapped.id).stored_bytes, engine_.Get(appended.id).stored_bytes);
    engine_->CheckInvariants();
  }
}

TEST_F(EngineMappedTest, DeletingASessionAsksToUnmapIt) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, true).ok());
  ASSERT_TRUE(engine_->DeleteSession(engine_.caller(), session.id).ok());
  EXPECT_EQ(lease.stream->unmap_wanted, std::vector<std::string>{session.id});
  EXPECT_GT(engine_->used_bytes(), 0u);
  EXPECT_TRUE(engine_->UnmapSession(engine_.caller(), lease.id, session.id).ok());
  EXPECT_EQ(engine_->used_bytes(), 0u);
}

// Room for two extents of 64 tokens and the sinks, and for half of one more.
class EngineMappedMemoryTest : public EngineMappedTest {
 protected:
  EngineMappedMemoryTest() : EngineMappedTest(Options()) {}
  static EngineOptions Options() {
    EngineOptions options;
    options.budget_bytes = (16 + 64 + 64 + 32) * kTokenBytes;
    return options;
  }
};

TEST_F(EngineMappedMemoryTest, WithLittleMemoryThereIsLessRoom) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  const auto mapped = Map(lease, session.id, true, 0, 100);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_EQ(mapped->directory->layers[0].room.size(), 3u);
  const auto committed = Commit(lease, session.id, 1, 100);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_TRUE(committed->directory->layers[0].room.empty());
  EXPECT_TRUE(absl::IsOutOfRange(Commit(lease, session.id, 1, 200).status()));
}

// A reader maps what takes all memory; the tenant's next append meets the budget.
TEST_F(EngineMappedMemoryTest, WhereMemoryIsShortLeasesAreAskedToUnmap) {
  const SessionInfo mapped = Create("mapped");
  const SessionInfo other = Create("other");
  std::mt19937 random(1);
  ASSERT_TRUE(engine_.Append(mapped, 0, 0, {RandomTokens(random, kShape, 100)}).ok());
  const TestLease lease = Open();
  const TestLease idle = Open();
  ASSERT_TRUE(Map(lease, mapped.id, false).ok());
  const ModelTokens tokens = RandomTokens(random, kShape, 100);
  EXPECT_TRUE(absl::IsResourceExhausted(engine_.Append(other, 0, 0, {tokens}).status()));
  EXPECT_EQ(lease.stream->unmap_wanted, std::vector<std::string>{mapped.id});
  EXPECT_TRUE(idle.stream->unmap_wanted.empty());
  // It is asked once, and has its time.
  lease.stream->unmap_wanted.clear();
  engine_.clock().Advance(absl::Seconds(4));
  EXPECT_TRUE(absl::IsResourceExhausted(engine_.Append(other, 0, 0, {tokens}).status()));
  EXPECT_TRUE(lease.stream->unmap_wanted.empty());
  EXPECT_TRUE(Map(lease, mapped.id, false).ok());
  engine_.clock().Advance(absl::Seconds(1));
  const absl::Status refused = Map(lease, mapped.id, false).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(refused.message().rfind("unmap_timeout: 5s", 0), 0u) << refused;
  EXPECT_TRUE(absl::IsResourceExhausted(Map(lease, other.id, false).status()));
  // A lease that maps nothing that others need is not refused.
  EXPECT_TRUE(Map(idle, other.id, false).ok());
  // Deleted, it is held by the lease alone; unmapped, it is free, and the lease maps again.
  ASSERT_TRUE(engine_->DeleteSession(engine_.caller(), mapped.id).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(engine_.Append(other, 0, 0, {tokens}).status()));
  ASSERT_TRUE(engine_->UnmapSession(engine_.caller(), lease.id, mapped.id).ok());
  EXPECT_TRUE(engine_.Append(other, 0, 0, {tokens}).ok());
  EXPECT_TRUE(Map(lease, other.id, false).ok());
}

// Room is handed out ahead of need: nobody has to go for it while the writer has some.
TEST_F(EngineMappedMemoryTest, ForMoreRoomNobodyIsAskedToUnmapBeforeItIsNeeded) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, true, 0, 100).ok());
  ASSERT_TRUE(Commit(lease, session.id, 1, 99).ok());
  EXPECT_TRUE(lease.stream->unmap_wanted.empty());
  ASSERT_TRUE(Commit(lease, session.id, 1, 144).ok());
  EXPECT_EQ(lease.stream->unmap_wanted, std::vector<std::string>{session.id});
}

TEST_F(EngineMappedMemoryTest, WithoutMemoryForTheCopyNobodyWrites) {
  const SessionInfo session = Create("chat");
  const TestLease lease = Open();
  ASSERT_TRUE(Map(lease, session.id, true, 0, 100).ok());
  ASSERT_TRUE(Commit(lease, session.id, 1, 100).ok());
  engine_->EndLease(lease.id, absl::CancelledError("test"));
  std::mt19937 random(1);
  const ModelTokens token = RandomTokens(random, kShape, 1);
  for (int i = 0; i < 20; ++i) {
    engine_->ExpireLeases();
    EXPECT_TRUE(absl::IsUnavailable(engine_.Append(session, 0, 100, {token}).status()));
  }
  EXPECT_EQ(engine_.Get(session.id).generation, 1u);
  engine_->SetBudget(1 << 20);
  TickUntilGeneration(session.id, 2);
  SessionInfo next = engine_.Get(session.id);
  absl::StatusOr<LayerState> appended = engine_.Append(next, 0, 100, {token});
  while (absl::IsUnavailable(appended.status())) {
    appended = engine_.Append(next, 0, 100, {token});
  }
  EXPECT_TRUE(appended.ok()) << appended.status();
}

}  // namespace
}  // namespace kvdepot
