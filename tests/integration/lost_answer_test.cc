// Calls of mapped sessions whose answer does not arrive: the next call finds what the lost one has
// left, and nothing waits for a slab that was sent.
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

// Shows slabs only while a gate is open.
class GatedExports final : public ForwardingBackend {
 public:
  GatedExports(std::unique_ptr<Backend> to, Gate* gate)
      : ForwardingBackend(std::move(to)), gate_(gate) {}

  absl::StatusOr<ExportedSlab> ExportSlab(uint64_t serial) override {
    gate_->Pass();
    return ForwardingBackend::ExportSlab(serial);
  }

 private:
  Gate* const gate_;
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
      return std::make_unique<GatedExports>(*std::move(backend), &gate_);
    };
    return hooks;
  }
  absl::StatusOr<std::unique_ptr<MappedSession>> Open(absl::Time deadline) {
    return MappedSession::Open(lease_, id_, {MapAccess::kWrite, 64}, deadline);
  }

  Gate gate_;
  // A session of a few tokens fills a slab.
  TestDaemon daemon_{[](Options& options, const std::string& folder) {
                       InHostMemory(options, folder);
                       options.slab_bytes = kSlabGranularityBytes;
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
  const auto session = Open(Soon());
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
  const absl::Status again = (*session)->Commit(Soon());
  ASSERT_TRUE(again.ok()) << again;
  EXPECT_EQ((*session)->committed_token_count(), 64u);
  EXPECT_GE((*session)->room_tokens(), 4096u);
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
