#include "gpu/attend_plan.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

RowCosts Costs(uint32_t coded_units, uint32_t coded_cost, uint32_t exact_units,
               uint32_t exact_cost) {
  RowCosts costs;
  costs.coded_units = coded_units;
  costs.coded_cost = coded_cost;
  costs.exact_units = exact_units;
  costs.exact_cost = exact_cost;
  return costs;
}

// Where unit `unit` begins on the row's line, added up one by one; units() is where the row ends.
// The row's own cost comes first, one before the first exact unit.
uint32_t BeginOf(const RowCosts& costs, uint32_t unit) {
  uint32_t offset = kRowCost;
  for (uint32_t i = 0; i < unit; ++i)
    offset += i < costs.coded_units ? costs.coded_cost : costs.exact_cost;
  if (unit >= costs.coded_units && costs.exact_units > 0) offset += kExactCost;
  return offset;
}
// Where the unit before it ends.
uint32_t EndBefore(const RowCosts& costs, uint32_t unit) {
  const bool first_exact = unit == costs.coded_units && costs.exact_units > 0;
  return BeginOf(costs, unit) - (first_exact ? kExactCost : 0);
}

// Of `offset` from the boundary before a unit, which is as wide as the cost that lies there.
uint32_t Distance(const RowCosts& costs, uint32_t unit, uint32_t offset) {
  if (offset < EndBefore(costs, unit)) return EndBefore(costs, unit) - offset;
  return offset > BeginOf(costs, unit) ? offset - BeginOf(costs, unit) : 0;
}

TEST(AttendPlanTest, TheNearestUnitIsTheNearestBoundary) {
  for (const RowCosts& costs :
       {Costs(9, 7, 3, 20), Costs(4, 30, 5, 3), Costs(6, 5, 0, 8), Costs(0, 5, 4, 8)}) {
    ASSERT_EQ(BeginOf(costs, costs.units()), costs.total());
    uint32_t before = 0;
    for (uint32_t offset = 0; offset < kRowCost; ++offset)
      ASSERT_EQ(costs.NearestUnit(offset), 0u) << "a cut in the row's own cost is before the row";
    for (uint32_t offset = kRowCost; offset <= costs.total(); ++offset) {
      const uint32_t unit = costs.NearestUnit(offset);
      ASSERT_LE(unit, costs.units());
      ASSERT_GE(unit, before) << "cuts must ascend";
      before = unit;
      for (uint32_t other = 0; other <= costs.units(); ++other) {
        ASSERT_LE(Distance(costs, unit, offset), Distance(costs, other, offset))
            << "offset " << offset << ", unit " << unit << ", other " << other;
      }
    }
  }
}

TEST(AttendPlanTest, ABlockOfWarpsAlwaysGetsMoreThanTheCostliestUnit) {
  for (const uint32_t total : {1u, 100u, 1000u, 50'000u, 4'000'000u}) {
    for (const uint32_t largest : {1u, 90u, 512u}) {
      const PlanGrid grid = GridFor(total, largest, 132, 8);
      EXPECT_GE(grid.ctas, 1u);
      EXPECT_LE(grid.ctas, 132u);
      EXPECT_EQ(grid.warps_per_cta, 8u);
      if (grid.ctas > 1) {
        EXPECT_GE(total / grid.ctas * 4, (largest + kRowCost + kExactCost) * 5 - 4)
            << total << " " << largest;
      }
    }
  }
}

TEST(AttendPlanTest, NothingToDoIsOneBlock) { EXPECT_EQ(GridFor(0, 0, 132, 8).ctas, 1u); }

TEST(AttendPlanTest, CostsStandForBytesAndWork) {
  DeviceHead head = {};
  head.record_bytes = 4224;
  head.k_widths = 0x0124;
  head.v_widths = 0x2222;
  EXPECT_EQ(BlockCostBytes(head), 4224 + kBlockWorkBytes + 7 * kGroupWorkBytes);
  AttendCell cell = {};
  cell.coded_units = 3;
  cell.exact_units = 2;
  const RowCosts costs = CostsOf(cell, 20'000, 512);
  EXPECT_EQ(costs.units(), 5u);
  EXPECT_EQ(costs.coded_cost, kStepBlocks * 20'000 / kCostBytes);
  EXPECT_EQ(costs.exact_cost, (512 * 16 + kChunkWorkBytes) / kCostBytes);
  EXPECT_EQ(costs.largest_unit(), std::max(costs.coded_cost, costs.exact_cost));
}

TEST(AttendPlanTest, AStepReadsTwoBlocksFromTheFirstVisibleOne) {
  EXPECT_EQ(CodedSteps(0, 1), 1u);
  EXPECT_EQ(CodedSteps(0, 128), 1u);
  EXPECT_EQ(CodedSteps(0, 129), 2u);
  EXPECT_EQ(CodedSteps(63, 2), 1u);
  EXPECT_EQ(CodedSteps(63, 66), 2u);
  EXPECT_EQ(CodedSteps(0, 1024), 8u);
}

}  // namespace
}  // namespace kvdepot
