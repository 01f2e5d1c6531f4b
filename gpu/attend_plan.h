// Who reads what: the work of an attend launch, cut into equal ranges for its warps.
//
// A row (attend_launch.h) has units: the steps of its `coded` runs, then the chunks of its exact
// runs. A unit's cost stands for its bytes and its work; a row begins with a cost of its own, which
// no unit has, and so do its exact units. Rows lie one after the other on a line of costs; warp w
// of n takes what lies between w / n and (w + 1) / n of it, rounded to whole units. A warp may get
// nothing, a block of warps gets a unit at least.
#ifndef KVDEPOT_GPU_ATTEND_PLAN_H_
#define KVDEPOT_GPU_ATTEND_PLAN_H_

#include <cstdint>

#include "gpu/attend_directory.h"
#include "gpu/device_head.h"
#include "gpu/host_device.h"
#include "gpu/planes/format.h"

namespace kvdepot {

// Costs are counted in so many bytes read. The costs of all rows together stay below 2^32: 2^40
// bytes are more than a device holds.
inline constexpr uint32_t kCostBytes = 256;
// What a block costs beside its bytes: softmax, and products of each group of K or V that is
// stored, whatever its width.
inline constexpr uint32_t kBlockWorkBytes = 11 * 1024;
inline constexpr uint32_t kGroupWorkBytes = 256;
inline constexpr uint32_t kChunkWorkBytes = 12 * 1024;
// Queries are prepared and a first unit's latency is waited for by every warp; one that comes to a
// second row does it again.
inline constexpr uint32_t kRowWorkBytes = 65 * 1024;
inline constexpr uint32_t kRowCost = kRowWorkBytes / kCostBytes;
// Likewise before a row's first chunk.
inline constexpr uint32_t kExactWorkBytes = 45 * 1024;
inline constexpr uint32_t kExactCost = kExactWorkBytes / kCostBytes;

struct RowCosts {
  uint32_t coded_units = 0;
  uint32_t exact_units = 0;
  uint32_t coded_cost = 0;  // of one unit
  uint32_t exact_cost = 0;

  KVDEPOT_HOST_DEVICE uint32_t units() const { return coded_units + exact_units; }
  KVDEPOT_HOST_DEVICE uint32_t total() const {
    return kRowCost + coded_units * coded_cost +
           (exact_units > 0 ? kExactCost + exact_units * exact_cost : 0);
  }
  KVDEPOT_HOST_DEVICE uint32_t largest_unit() const {
    const uint32_t coded = coded_units > 0 ? coded_cost : 0;
    const uint32_t exact = exact_units > 0 ? exact_cost : 0;
    return coded > exact ? coded : exact;
  }
  // The unit boundary nearest to `offset` on the row's part of the line, 0 .. units().
  KVDEPOT_HOST_DEVICE uint32_t NearestUnit(uint32_t offset) const {
    if (offset <= kRowCost) return 0;
    offset -= kRowCost;
    const uint32_t coded = coded_units * coded_cost;
    if (offset < coded) return (offset + coded_cost / 2) / coded_cost;
    if (exact_units == 0 || offset <= coded + kExactCost) return coded_units;
    return coded_units + (offset - coded - kExactCost + exact_cost / 2) / exact_cost;
  }
};

// Of a chunk. `exact_token_bytes`: K and V of one token and KV head.
KVDEPOT_HOST_DEVICE constexpr uint32_t ExactCost(uint32_t exact_token_bytes) {
  return (exact_token_bytes * kExactChunkTokens + kChunkWorkBytes) / kCostBytes;
}

// Of a block of a head, in bytes.
inline uint32_t BlockCostBytes(const DeviceHead& head) {
  uint32_t groups = 0;
  for (int i = 0; i < planes::kGroupsMax; ++i)
    groups += (planes::GroupWidth(head.k_widths, i) > 0 ? 1 : 0) +
              (planes::GroupWidth(head.v_widths, i) > 0 ? 1 : 0);
  return head.record_bytes + kBlockWorkBytes + groups * kGroupWorkBytes;
}

KVDEPOT_HOST_DEVICE inline RowCosts CostsOf(const AttendCell& cell, uint32_t block_cost_bytes,
                                            uint32_t exact_token_bytes) {
  RowCosts costs;
  costs.coded_units = cell.coded_units;
  costs.exact_units = cell.exact_units;
  costs.coded_cost = kStepBlocks * block_cost_bytes / kCostBytes;
  costs.exact_cost = ExactCost(exact_token_bytes);
  return costs;
}

// How many warps take part: `ctas` blocks of `warps_per_cta` each.
struct PlanGrid {
  uint32_t ctas = 1;
  uint32_t warps_per_cta = 1;
  KVDEPOT_HOST_DEVICE uint32_t warps() const { return ctas * warps_per_cta; }
};

// As many as there are, unless the range of a block could be empty: ranges are rounded to units,
// and some begin after a cost that no unit has. A warp's range may be empty.
KVDEPOT_HOST_DEVICE inline PlanGrid GridFor(uint32_t total_cost, uint32_t largest_unit,
                                            uint32_t ctas, uint32_t warps_per_cta) {
  PlanGrid grid;
  grid.ctas = ctas;
  grid.warps_per_cta = warps_per_cta;
  // With a quarter to spare. Most launches need no division.
  const uint32_t needed = largest_unit + kRowCost + kExactCost;
  if (total_cost >= needed * ((ctas + 3) / 4 * 5)) return grid;
  const uint32_t most = total_cost / needed / 5 * 4;
  grid.ctas = most < 1 ? 1 : most < ctas ? most : ctas;
  return grid;
}

// A boundary between two warps: before unit `unit` of row `row`.
struct PlanCut {
  uint32_t row = 0;
  uint32_t unit = 0;
  KVDEPOT_HOST_DEVICE bool operator==(const PlanCut& other) const {
    return row == other.row && unit == other.unit;
  }
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_ATTEND_PLAN_H_
