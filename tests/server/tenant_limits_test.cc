#include "server/tenant_limits.h"

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/server/fake_clock.h"

namespace kvdepot {
namespace {

TEST(TenantLimits, CountsOpenCallsOfEachTenantAlone) {
  FakeClock clock;
  TenantLimits limits(2, 0, &clock);
  EXPECT_TRUE(limits.BeginCall("a").ok());
  EXPECT_TRUE(limits.BeginCall("a").ok());
  EXPECT_EQ(limits.BeginCall("a"),
            absl::ResourceExhaustedError("calls_per_tenant_max: 2 of 2 calls are open"));
  EXPECT_TRUE(limits.BeginCall("b").ok());
  limits.EndCall("a");
  EXPECT_TRUE(limits.BeginCall("a").ok());
}

TEST(TenantLimits, ARefusedCallIsNotOpen) {
  FakeClock clock;
  TenantLimits limits(1, 0, &clock);
  EXPECT_TRUE(limits.BeginCall("a").ok());
  EXPECT_FALSE(limits.BeginCall("a").ok());
  limits.EndCall("a");
  EXPECT_TRUE(limits.BeginCall("a").ok());
}

TEST(TenantLimits, ASecondsRequestsMayComeAtOnceAndThenAsTimePasses) {
  FakeClock clock;
  TenantLimits limits(1, 4, &clock);
  const auto taken = [&limits] {
    int count = 0;
    while (limits.CountRequest("a").ok()) ++count;
    return count;
  };
  EXPECT_EQ(taken(), 4);
  EXPECT_TRUE(absl::IsResourceExhausted(limits.CountRequest("a")));
  EXPECT_TRUE(limits.CountRequest("b").ok());
  clock.Advance(absl::Milliseconds(500));
  EXPECT_EQ(taken(), 2);
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(taken(), 4) << "no more than a second's";
  clock.Advance(-absl::Hours(1));
  EXPECT_EQ(taken(), 0);
  clock.Advance(absl::Seconds(1));
  EXPECT_EQ(taken(), 4) << "a clock that was set back refuses nobody for longer";
}

TEST(TenantLimits, WithoutARateAllMayCome) {
  FakeClock clock;
  TenantLimits limits(1, 0, &clock);
  for (int i = 0; i < 10000; ++i) ASSERT_TRUE(limits.CountRequest("a").ok());
}

}  // namespace
}  // namespace kvdepot
