// Calls of mapped sessions whose answer does not arrive: the next call finds what the lost one has
// left, and nothing waits for a slab that was sent.
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapped_session.h"
#include "gpu/slab_pool.h"
#include "gtest/gtest.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/gate.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }
absl::Time TooSoon() { return absl::Now() + absl::Milliseconds(50); }

// Shows slabs only while a gate is open, and the next one as nobody can map it if it is told so.
class GatedExports final : public ForwardingBackend {
 public:
  GatedExports(std::unique_ptr<Backend> to, Gate* gate, std::atomic<bool>* spoils_next)
      : ForwardingBackend(std::move(to)), gate_(gate), spoils_next_(spoils_next) {}

  absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) override {
    gate_->Pass();
    absl::StatusOr<ExportedSlab> slab = ForwardingBackend::ExportSlab(serial);
    if (slab.ok() && spoils_next_->exchange(false)) slab->region.kind = RegionKind::kCudaIpc;
    return slab;
  }

 private:
  Gate* const gate_;
  std::atomic<bool>* const spoils_next_;
};

class LostAnswerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    gate_.Open();
    auto lease = Lease::Open(daemon_.server().addresses()[0], {}, Soon());
    ASSERT_TRUE(lease.ok()) << lease.status();
    lease_ = *std::move(lease);
    id_ = daemon_.CreateSession("chat").id();
  }
  Server::Hooks Gated() {
    Server::Hooks hooks;
    hooks.make_backend =
        [this](const BackendOptions& options) -> absl::StatusOr<std::unique_ptr<Backend>> {
      auto backend = MakeBackend(options);
      if (!backend.ok()) return backend.status();
      return std::make_unique<GatedExports>(*std::move(backend), &gate_, &spoils_next_);
    };
    return hooks;
  }
  absl::StatusOr<std::unique_ptr<MappedSession>> Open(absl::Time deadline) {
    return MappedSession::Open(lease_, id_, {MapAccess::kWrite, 64}, deadline);
  }
  // `call` until the lost one is no longer at work.
  template <typename Call>
  static auto OnceFree(const Call& call) {
    auto result = call();
    while (absl::IsUnavailable(StatusOf(result))) result = call();
    return result;
  }
  static absl::Status StatusOf(const absl::Status& status) { return status; }
  template <typename T>
  static absl::Status StatusOf(const absl::StatusOr<T>& result) {
    return result.status();
  }

  Gate gate_;
  std::atomic<bool> spoils_next_{false};
  // A session of a few tokens fills a slab.
  TestDaemon daemon_{[](Options& options, const std::string& folder) {
                       InHostMemory(options, folder);
                       options.slab_bytes = kSlabGranularityBytes;
                       options.memory_budget.bytes = uint64_t{4} << 30;
                       options.engine.room_tokens_max = 500000;
                     },
                     Gated()};
  std::shared_ptr<Lease> lease_;
  std::string id_;
};

TEST_F(LostAnswerTest, ASessionIsMappedByTheNextCall) {
  gate_.Close();
  const absl::Status lost = Open(TooSoon()).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(lost)) << lost;
  gate_.WaitUntilReached();
  gate_.Open();
  const auto session = OnceFree([&] { return Open(Soon()); });
  ASSERT_TRUE(session.ok()) << session.status();
  const MappedTokens tokens(0, 0, 64);
  EXPECT_TRUE((*session)->Append(0, tokens.tokens()).ok());
}

TEST_F(LostAnswerTest, ACommitIsSentAgain) {
  const auto session = Open(Soon());
  ASSERT_TRUE(session.ok()) << session.status();
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE((*session)->Append(layer, MappedTokens(layer, 0, 64).tokens()).ok());
  }
  gate_.Close();
  // Room for so many needs new slabs.
  const absl::Status lost = (*session)->Commit(TooSoon(), 4096);
  EXPECT_TRUE(absl::IsDeadlineExceeded(lost)) << lost;
  gate_.WaitUntilReached();
  gate_.Open();
  const absl::Status again = OnceFree([&] { return (*session)->Commit(Soon()); });
  ASSERT_TRUE(again.ok()) << again;
  EXPECT_EQ((*session)->committed_token_count(), 64u);
  EXPECT_GE((*session)->room_tokens(), 4096u);
}

TEST_F(LostAnswerTest, ASlabThatCouldNotBeMappedIsSentAgain) {
  spoils_next_ = true;
  EXPECT_FALSE(Open(Soon()).ok());
  EXPECT_FALSE(spoils_next_);
  const auto session = OnceFree([&] { return Open(Soon()); });
  EXPECT_TRUE(session.ok()) << session.status();
}

// More than the socket holds.
TEST_F(LostAnswerTest, ManySlabsComeInPortions) {
  const auto session = MappedSession::Open(lease_, id_, {MapAccess::kWrite, 400000}, Soon());
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_GE((*session)->room_tokens(), 400000u);
}

// What the daemon does not know yet when the next call comes.
TEST_F(LostAnswerTest, ASlabThatWasJustLetGoOfComesAgain) {
  auto first = Open(Soon());
  ASSERT_TRUE(first.ok()) << first.status();
  for (int round = 0; round < 200; ++round) {
    *first = nullptr;
    first = Open(Soon());
    ASSERT_TRUE(first.ok()) << round << ": " << first.status();
    const absl::Status committed = (*first)->Commit(Soon(), round % 2 == 0 ? 4096 : 64);
    ASSERT_TRUE(committed.ok()) << round << ": " << committed;
  }
}

}  // namespace
}  // namespace kvdepot
