#include "server/memory_budget.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace kvdepot {
namespace {

TEST(MemoryBudgetTest, AChargeLastsAsLongAsItsHandle) {
  MemoryBudget budget(100, 100);
  {
    const absl::StatusOr<MemoryCharge> charge = budget.Reserve("a", 60);
    ASSERT_TRUE(charge.ok());
    EXPECT_EQ(charge->bytes(), 60u);
    EXPECT_EQ(budget.used_bytes(), 60u);
    EXPECT_EQ(budget.tenant_used_bytes("a"), 60u);
    EXPECT_EQ(budget.tenant_used_bytes("b"), 0u);
  }
  EXPECT_EQ(budget.used_bytes(), 0u);
  EXPECT_EQ(budget.tenant_used_bytes("a"), 0u);
}

TEST(MemoryBudgetTest, TheBudgetIsSharedByAllTenants) {
  MemoryBudget budget(100, 80);
  const absl::StatusOr<MemoryCharge> a = budget.Reserve("a", 60);
  const absl::StatusOr<MemoryCharge> b = budget.Reserve("b", 41);
  EXPECT_EQ(b.status(),
            absl::ResourceExhaustedError("budget_bytes: 60 used of 100, 41 more needed"));
  EXPECT_TRUE(budget.Reserve("b", 40).ok());
}

TEST(MemoryBudgetTest, ASmallerBudgetKeepsChargesAndTakesNoMore) {
  MemoryBudget budget(100, 0);
  absl::StatusOr<MemoryCharge> charge = budget.Reserve("a", 60);
  budget.SetBudget(50);
  EXPECT_EQ(budget.budget_bytes(), 50u);
  EXPECT_EQ(budget.used_bytes(), 60u);
  EXPECT_EQ(budget.Reserve("b", 1).status(),
            absl::ResourceExhaustedError("budget_bytes: 60 used of 50, 1 more needed"));
  charge = MemoryCharge();
  EXPECT_TRUE(budget.Reserve("b", 50).ok());
  budget.SetBudget(200);
  EXPECT_TRUE(budget.Reserve("b", 200).ok());
}

TEST(MemoryBudgetTest, AQuotaOfZeroIsTheWholeBudget) {
  MemoryBudget budget(100, 0);
  EXPECT_TRUE(budget.Reserve("a", 100).ok());
}

TEST(MemoryBudgetTest, AQuotaBindsOneTenant) {
  MemoryBudget budget(100, 50);
  const absl::StatusOr<MemoryCharge> a = budget.Reserve("a", 50);
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(budget.Reserve("a", 1).status(),
            absl::ResourceExhaustedError("tenant_quota_bytes: 50 used of 50, 1 more needed"));
  EXPECT_TRUE(budget.Reserve("b", 50).ok());
}

TEST(MemoryBudgetTest, ARefusedReservationChargesNothing) {
  MemoryBudget budget(100, 50);
  EXPECT_FALSE(budget.Reserve("a", 51).ok());
  EXPECT_FALSE(budget.Reserve("a", UINT64_MAX).ok());
  EXPECT_EQ(budget.used_bytes(), 0u);
}

TEST(MemoryBudgetTest, SplitPartsAreReleasedOneByOne) {
  MemoryBudget budget(100, 100);
  MemoryCharge whole = *budget.Reserve("a", 100);
  {
    const MemoryCharge part = whole.Split(30);
    EXPECT_EQ(part.bytes(), 30u);
    EXPECT_EQ(whole.bytes(), 70u);
    EXPECT_EQ(budget.used_bytes(), 100u);
  }
  EXPECT_EQ(budget.used_bytes(), 70u);
}

TEST(MemoryBudgetTest, AssignmentReleasesWhatWasHeld) {
  MemoryBudget budget(100, 100);
  MemoryCharge charge = *budget.Reserve("a", 10);
  charge = *budget.Reserve("b", 20);
  EXPECT_EQ(budget.tenant_used_bytes("a"), 0u);
  charge = MemoryCharge();
  EXPECT_EQ(budget.used_bytes(), 0u);
}

TEST(MemoryBudgetTest, ThreadsNeverExceedTheBudget) {
  MemoryBudget budget(1000, 600);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget, t] {
      const std::string tenant = t % 2 == 0 ? "a" : "b";
      for (int i = 0; i < 2000; ++i) {
        const absl::StatusOr<MemoryCharge> charge = budget.Reserve(tenant, 1 + i % 400);
        ASSERT_LE(budget.used_bytes(), 1000u);
        ASSERT_LE(budget.tenant_used_bytes(tenant), 600u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.used_bytes(), 0u);
}

}  // namespace
}  // namespace kvdepot
