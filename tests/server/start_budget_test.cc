// A device whose memory is given back while the daemon waits. Time passes in pauses alone.
#include "server/start_budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "tests/server/fake_clock.h"

namespace kvdepot {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

class StartBudgetTest : public testing::Test {
 protected:
  StartBudgetTest() { options_.memory_budget = {40 * kGiB, 0}; }

  // With so much free now and after each further second; the last number stays.
  absl::StatusOr<uint64_t> Budget(const std::vector<uint64_t>& free_bytes) {
    StartMemory memory;
    memory.free_bytes = [&] {
      return free_bytes[std::min(static_cast<size_t>(pauses_), free_bytes.size() - 1)];
    };
    memory.pause = [&](absl::Duration duration) {
      clock_.Advance(duration);
      waited_ += duration;
      return ++pauses_ != stop_at_;
    };
    memory.on_short = [&](uint64_t wanted, uint64_t free) { told_.push_back({wanted, free}); };
    return BudgetAtStart(options_, &clock_, memory);
  }

  Options options_;
  FakeClock clock_;
  int pauses_ = 0;
  // At which pause the daemon is asked to end. 0: never.
  int stop_at_ = 0;
  absl::Duration waited_;
  // {wanted, free}
  std::vector<std::vector<uint64_t>> told_;
};

using Told = std::vector<std::vector<uint64_t>>;

TEST_F(StartBudgetTest, WithEnoughNobodyWaitsOrIsTold) {
  options_.memory_wait_timeout = absl::Seconds(60);
  EXPECT_EQ(*Budget({40 * kGiB}), 40 * kGiB);
  EXPECT_EQ(pauses_, 0);
  EXPECT_EQ(told_, Told());
}

TEST_F(StartBudgetTest, ByDefaultItIsWhatIsFreeAtOnce) {
  EXPECT_EQ(*Budget({10 * kGiB, 40 * kGiB}), 10 * kGiB);
  EXPECT_EQ(pauses_, 0);
  EXPECT_EQ(told_, (Told{{40 * kGiB, 10 * kGiB}}));
}

TEST_F(StartBudgetTest, WaitsUntilTheMemoryIsBack) {
  options_.memory_wait_timeout = absl::Seconds(60);
  EXPECT_EQ(*Budget({10 * kGiB, 10 * kGiB, 30 * kGiB, 41 * kGiB}), 40 * kGiB);
  EXPECT_EQ(waited_, absl::Seconds(3));
  EXPECT_EQ(told_, (Told{{40 * kGiB, 10 * kGiB}}));
}

TEST_F(StartBudgetTest, AfterTheWaitItIsWhatIsFreeThen) {
  options_.memory_wait_timeout = absl::Milliseconds(2500);
  EXPECT_EQ(*Budget({10 * kGiB, 12 * kGiB}), 12 * kGiB);
  EXPECT_EQ(waited_, absl::Milliseconds(2500));
}

TEST_F(StartBudgetTest, WithLessThanTheLeastItDoesNotStart) {
  options_.memory_wait_timeout = absl::Seconds(2);
  options_.memory_budget_bytes_min = 40 * kGiB;
  EXPECT_EQ(Budget({kGiB}).status(),
            absl::ResourceExhaustedError(
                "memory_budget_bytes_min: 42949672960 needed, memory_budget gives 1073741824 of "
                "1073741824 that are free, after 2s of memory_wait_timeout"));
  EXPECT_EQ(waited_, absl::Seconds(2));
}

// Half of what is free is less than the least, then no more.
TEST_F(StartBudgetTest, APartOfWhatIsFreeWaitsForTheLeast) {
  options_.memory_budget = {0, 50};
  options_.memory_budget_bytes_min = 8 * kGiB;
  options_.memory_wait_timeout = absl::Seconds(60);
  EXPECT_EQ(*Budget({10 * kGiB, 20 * kGiB}), 10 * kGiB);
  EXPECT_EQ(told_, (Told{{8 * kGiB, 10 * kGiB}}));
  EXPECT_EQ(pauses_, 1);
}

TEST_F(StartBudgetTest, NothingIsNoBudget) {
  EXPECT_TRUE(absl::IsResourceExhausted(Budget({0}).status()));
  options_.memory_budget = {0, 50};
  EXPECT_TRUE(absl::IsResourceExhausted(Budget({0}).status()));
}

TEST_F(StartBudgetTest, WhoIsAskedToEndEnds) {
  options_.memory_wait_timeout = absl::Seconds(60);
  stop_at_ = 2;
  EXPECT_TRUE(absl::IsCancelled(Budget({kGiB}).status()));
  EXPECT_EQ(pauses_, 2);
}

}  // namespace
}  // namespace kvdepot
