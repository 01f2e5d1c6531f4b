#include "gpu/attend_plan.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace kvdepot {
namespace {

RowCosts Costs(uint32_t planes_units, uint32_t planes_cost, uint32_t exact_units,
               uint32_t exact_cost) {
  RowCosts costs;
  costs.planes_units = planes_units;
  costs.planes_cost = planes_cost;
  costs.exact_units = exact_units;
  costs.exact_cost = exact_cost;
  return costs;
}

// Boundary of unit `unit` on the row's line, added up one by one. The row's own cost comes first.
uint32_t BoundaryOf(const RowCosts& costs, uint32_t unit) {
  uint32_t offset = kRowCost;
  for (uint32_t i = 0; i < unit; ++i)
    offset += i < costs.planes_units ? costs.planes_cost : costs.exact_cost;
  return offset;
}

TEST(AttendPlanTest, TheNearestUnitIsTheNearestBoundary) {
  for (const RowCosts& costs :
       {Costs(9, 7, 3, 20), Costs(4, 30, 5, 3), Costs(6, 5, 0, 8), Costs(0, 5, 4, 8)}) {
    ASSERT_EQ(BoundaryOf(costs, costs.units()), costs.total());
    uint32_t before = 0;
    for (uint32_t offset = 0; offset < kRowCost; ++offset)
      ASSERT_EQ(costs.NearestUnit(offset), 0u) << "a cut in the row's own cost is before the row";
    for (uint32_t offset = kRowCost; offset <= costs.total(); ++offset) {
      const uint32_t unit = costs.NearestUnit(offset);
      ASSERT_LE(unit, costs.units());
      ASSERT_GE(unit, before) << "cuts must ascend";
      before = unit;
      const uint32_t boundary = BoundaryOf(costs, unit);
      const uint32_t distance = boundary > offset ? boundary - offset : offset - boundary;
      for (uint32_t other = 0; other <= costs.units(); ++other) {
        const uint32_t there = BoundaryOf(costs, other);
        ASSERT_LE(distance, there > offset ? there - offset : offset - there)
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
        EXPECT_GE(total / grid.ctas * 4, (largest + kRowCost) * 5 - 4) << total << " " << largest;
      }
    }
  }
}

TEST(AttendPlanTest, NothingToDoIsOneBlock) { EXPECT_EQ(GridFor(0, 0, 132, 8).ctas, 1u); }

TEST(AttendPlanTest, CostsStandForBytesAndWork) {
  AttendCell cell = {};
  cell.planes_units = 3;
  cell.exact_units = 2;
  const RowCosts costs = CostsOf(cell, 4224, 512);
  EXPECT_EQ(costs.units(), 5u);
  EXPECT_EQ(costs.planes_cost, kStepBlocks * (4224 + kBlockWorkBytes) / kCostBytes);
  EXPECT_EQ(costs.exact_cost, (512 * 16 + kChunkWorkBytes) / kCostBytes);
  EXPECT_EQ(costs.largest_unit(), std::max(costs.planes_cost, costs.exact_cost));
}

TEST(AttendPlanTest, AStepReadsTwoBlocksFromTheFirstVisibleOne) {
  EXPECT_EQ(PlanesSteps(0, 1), 1u);
  EXPECT_EQ(PlanesSteps(0, 128), 1u);
  EXPECT_EQ(PlanesSteps(0, 129), 2u);
  EXPECT_EQ(PlanesSteps(63, 2), 1u);
  EXPECT_EQ(PlanesSteps(63, 66), 2u);
  EXPECT_EQ(PlanesSteps(0, 1024), 8u);
}

}  // namespace
}  // namespace kvdepot
