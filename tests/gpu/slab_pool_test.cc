#include "gpu/slab_pool.h"

#include <algorithm>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

constexpr uint64_t kSlab = kSlabGranularityBytes;

// Addresses without memory behind them: the pool touches no byte.
class FakeDevice {
 public:
  SlabSource source() {
    return [this](size_t size_bytes, ExtentUse) -> absl::StatusOr<std::unique_ptr<SlabMemory>> {
      if (slabs_.size() == slabs_max) return absl::ResourceExhaustedError("device_memory: full");
      slabs_.push_back(next_);
      auto slab = std::make_unique<FakeSlab>(this, next_, size_bytes);
      next_ += size_bytes + kSlab;
      return slab;
    };
  }
  size_t slab_count() const { return slabs_.size(); }

  size_t slabs_max = 1000;

 private:
  class FakeSlab final : public SlabMemory {
   public:
    FakeSlab(FakeDevice* device, uintptr_t address, size_t size_bytes)
        : SlabMemory(reinterpret_cast<std::byte*>(address), size_bytes),
          device_(device),
          address_(address) {}
    absl::StatusOr<IpcRegion> Export() const override {
      IpcRegion region;
      region.size_bytes = size_bytes();
      return region;
    }
    ~FakeSlab() override {
      auto& slabs = device_->slabs_;
      slabs.erase(std::find(slabs.begin(), slabs.end(), address_));
    }

   private:
    FakeDevice* const device_;
    const uintptr_t address_;
  };

  std::vector<uintptr_t> slabs_;
  uintptr_t next_ = kSlab;
};

std::unique_ptr<Extent> Take(SlabPool& pool, size_t size_bytes, const std::string& tenant = "a",
                             ExtentUse use = ExtentUse::kTail) {
  absl::StatusOr<std::unique_ptr<Extent>> extent = pool.Allocate(tenant, use, size_bytes);
  EXPECT_TRUE(extent.ok()) << extent.status();
  return extent.ok() ? *std::move(extent) : nullptr;
}

uintptr_t Address(const std::unique_ptr<Extent>& extent) {
  return reinterpret_cast<uintptr_t>(extent->data());
}

TEST(SlabPoolTest, ExtentsShareASlabAndAreAligned) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 10 * kSlab);
  const auto first = Take(pool, 1000);
  const auto second = Take(pool, 1);
  EXPECT_EQ(device.slab_count(), 1u);
  EXPECT_EQ(first->size_bytes(), 1000u);
  EXPECT_EQ(Address(first) % 256, 0u);
  EXPECT_EQ(Address(second), Address(first) + 1024);
  EXPECT_EQ(pool.usage().slab_bytes, kSlab);
  EXPECT_EQ(pool.usage().unused_bytes, kSlab - 1001);
}

TEST(SlabPoolTest, TenantsAndUsesNeverShareASlab) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 10 * kSlab);
  const auto a_tail = Take(pool, 256, "a", ExtentUse::kTail);
  const auto a_sealed = Take(pool, 256, "a", ExtentUse::kSealed);
  const auto b_tail = Take(pool, 256, "b", ExtentUse::kTail);
  EXPECT_EQ(device.slab_count(), 3u);
  const auto more = Take(pool, 256, "a", ExtentUse::kSealed);
  EXPECT_EQ(device.slab_count(), 3u);
  EXPECT_EQ(Address(more), Address(a_sealed) + 256);
}

TEST(SlabPoolTest, FreedNeighboursJoin) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  auto a = Take(pool, kSlab / 4);
  auto b = Take(pool, kSlab / 4);
  auto c = Take(pool, kSlab / 4);
  auto d = Take(pool, kSlab / 4);
  const uintptr_t begin = Address(a);
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, 1).ok());
  a.reset();
  c.reset();
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, kSlab / 2).ok());
  b.reset();
  const auto joined = Take(pool, 3 * kSlab / 4);
  EXPECT_EQ(Address(joined), begin);
}

TEST(SlabPoolTest, AnExtentShrinksWhereItLies) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  auto first = Take(pool, kSlab / 2);
  const auto second = Take(pool, kSlab / 2);
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, 1).ok());
  const uintptr_t begin = Address(first);
  first->Shrink(1000);
  EXPECT_EQ(Address(first), begin);
  EXPECT_EQ(first->size_bytes(), 1000u);
  EXPECT_EQ(pool.usage().unused_bytes, kSlab / 2 - 1000);
  // Within the same rounding: nothing to give back, but what is used is counted.
  first->Shrink(900);
  EXPECT_EQ(pool.usage().unused_bytes, kSlab / 2 - 900);
  const auto between = Take(pool, kSlab / 2 - 1024);
  EXPECT_EQ(Address(between), begin + 1024);
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, 1).ok());
  // Its end gives back what it still has.
  first.reset();
  EXPECT_EQ(Address(Take(pool, 1024)), begin);
}

TEST(SlabPoolTest, WhatAnExtentGivesBackJoinsTheFreeRangeBehindIt) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  auto extent = Take(pool, kSlab / 2);
  const uintptr_t begin = Address(extent);
  extent->Shrink(1);
  const auto rest = Take(pool, kSlab - 256);
  EXPECT_EQ(Address(rest), begin + 256);
  extent.reset();
  EXPECT_EQ(Address(Take(pool, 256)), begin);
}

TEST(SlabPoolTest, EmptySlabsGoBackButForOne) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 10 * kSlab);
  std::vector<std::unique_ptr<Extent>> extents;
  for (int i = 0; i < 4; ++i) extents.push_back(Take(pool, kSlab));
  EXPECT_EQ(device.slab_count(), 4u);
  extents.clear();
  EXPECT_EQ(device.slab_count(), 1u);
  EXPECT_EQ(pool.usage().slab_bytes, kSlab);
  // The spare one serves its own tenant and use.
  const auto again = Take(pool, 100);
  EXPECT_EQ(device.slab_count(), 1u);
}

TEST(SlabPoolTest, ASpareSlabGivesWayToAnotherTenant) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  Take(pool, 100, "a").reset();
  EXPECT_EQ(device.slab_count(), 1u);
  device.slabs_max = 1;
  const auto b = Take(pool, 100, "b");
  EXPECT_EQ(device.slab_count(), 1u);
}

TEST(SlabPoolTest, AnExtentLargerThanASlabGetsOneOfItsOwn) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 10 * kSlab);
  auto large = Take(pool, 2 * kSlab + 1);
  EXPECT_EQ(pool.usage().slab_bytes, 3 * kSlab);
  const auto small = Take(pool, 100);
  EXPECT_EQ(Address(small), Address(large) + 2 * kSlab + 256);
}

TEST(SlabPoolTest, SlabsOfASmallBudgetAreSmaller) {
  FakeDevice device;
  SlabPool pool(device.source(), 16 * kSlab, 80 * kSlab);
  auto extent = Take(pool, 100);
  EXPECT_EQ(pool.usage().slab_bytes, 10 * kSlab);
  pool.SetBudget(kSlab);
  extent.reset();
  pool.SetBudget(1000 * kSlab);
  extent = Take(pool, 100);
  EXPECT_EQ(pool.usage().slab_bytes, 16 * kSlab);
}

TEST(SlabPoolTest, TheBudgetIsNamed) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  const auto a = Take(pool, 100);
  const absl::Status refused = pool.Allocate("b", ExtentUse::kTail, 100).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "budget_bytes: 2097152 in slabs of 2097152, a slab of 2097152 more needed; slabs of "
            "other tenants and uses have 2097052 unused");
  // The tenant's own slab has room all the same.
  Take(pool, 100);
}

TEST(SlabPoolTest, ABudgetShrinksAsSlabsBecomeEmpty) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 3 * kSlab);
  auto a = Take(pool, kSlab);
  auto b = Take(pool, kSlab);
  pool.SetBudget(kSlab);
  EXPECT_EQ(device.slab_count(), 2u);
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, 100).ok());
  a.reset();
  EXPECT_EQ(device.slab_count(), 1u);
  EXPECT_FALSE(pool.Allocate("a", ExtentUse::kTail, 100).ok());
  pool.SetBudget(2 * kSlab);
  EXPECT_TRUE(pool.Allocate("a", ExtentUse::kTail, 100).ok());
  b.reset();
  pool.SetBudget(0);
  EXPECT_EQ(device.slab_count(), 0u);
}

TEST(SlabPoolTest, TheSourcesErrorIsTheCallers) {
  FakeDevice device;
  device.slabs_max = 0;
  SlabPool pool(device.source(), kSlab, kSlab);
  EXPECT_EQ(pool.Allocate("a", ExtentUse::kTail, 1).status().message(), "device_memory: full");
  EXPECT_EQ(pool.usage().slab_bytes, 0u);
}

// Random lives of extents against the plainest model: no two overlap, and sums agree.
TEST(SlabPoolTest, ExtentsNeverOverlap) {
  FakeDevice device;
  SlabPool pool(device.source(), 2 * kSlab, 40 * kSlab);
  std::mt19937 random(5);
  std::vector<std::unique_ptr<Extent>> extents;
  int refused = 0;
  for (int step = 0; step < 20000; ++step) {
    if (extents.empty() || random() % 100 < 50) {
      const size_t size_bytes = 1 + random() % (random() % 20 == 0 ? 5 * kSlab : kSlab / 8);
      auto extent =
          pool.Allocate(random() % 2 == 0 ? "a" : "b",
                        random() % 2 == 0 ? ExtentUse::kTail : ExtentUse::kSealed, size_bytes);
      if (extent.ok()) {
        extents.push_back(*std::move(extent));
      } else {
        ++refused;
        extents.resize(extents.size() / 2);
      }
    } else {
      std::swap(extents[random() % extents.size()], extents.back());
      if (random() % 4 == 0) {
        extents.back()->Shrink(1 + random() % extents.back()->size_bytes());
      } else {
        extents.pop_back();
      }
    }
    if (step % 200 != 0) continue;
    std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
    uint64_t used = 0;
    for (const auto& extent : extents) {
      ranges.emplace_back(Address(extent), Address(extent) + extent->size_bytes());
      used += extent->size_bytes();
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) ASSERT_LE(ranges[i - 1].second, ranges[i].first);
    ASSERT_EQ(pool.usage().slab_bytes - pool.usage().unused_bytes, used);
    ASSERT_LE(pool.usage().slab_bytes, 40 * kSlab);
  }
  EXPECT_GT(refused, 0);
  extents.clear();
  EXPECT_LE(device.slab_count(), 1u);
}

TEST(SlabPoolTest, ExtentsSayWhereTheyLie) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 10 * kSlab);
  const auto first = Take(pool, 1000);
  const auto second = Take(pool, 1);
  const auto sealed = Take(pool, 1, "a", ExtentUse::kSealed);
  EXPECT_NE(first->place().serial, 0u);
  EXPECT_EQ(first->place().offset, 0u);
  EXPECT_EQ(second->place().serial, first->place().serial);
  EXPECT_EQ(second->place().offset, 1024u);
  EXPECT_NE(sealed->place().serial, first->place().serial);
}

TEST(SlabPoolTest, AHeldSlabStaysThoughItIsEmptyAndServesItsOwnTenant) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, 2 * kSlab);
  auto extent = Take(pool, 1000);
  const SlabPlace place = extent->place();
  absl::StatusOr<ExportedSlab> exported = pool.Export(place.serial);
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(exported->region.size_bytes, kSlab);
  extent = nullptr;
  pool.SetBudget(kSlab);
  EXPECT_EQ(device.slab_count(), 1u);
  // Another tenant does not get it, and its memory still counts.
  EXPECT_EQ(pool.Allocate("b", ExtentUse::kTail, 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.Allocate("a", ExtentUse::kSealed, 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Take(pool, 1000)->place().serial, place.serial);
  exported->hold = nullptr;
  EXPECT_TRUE(pool.Allocate("b", ExtentUse::kTail, 1).ok());
  EXPECT_EQ(pool.Export(place.serial).status().code(), absl::StatusCode::kNotFound);
}

TEST(SlabPoolTest, ASlabGoesWithTheLastOfItsHolds) {
  FakeDevice device;
  SlabPool pool(device.source(), kSlab, kSlab);
  auto extent = Take(pool, 1000);
  absl::StatusOr<ExportedSlab> first = pool.Export(extent->place().serial);
  absl::StatusOr<ExportedSlab> second = pool.Export(extent->place().serial);
  ASSERT_TRUE(first.ok() && second.ok());
  extent = nullptr;
  first->hold = nullptr;
  pool.SetBudget(0);
  EXPECT_EQ(device.slab_count(), 1u);
  second->hold = nullptr;
  EXPECT_EQ(device.slab_count(), 0u);
}

}  // namespace
}  // namespace kvdepot
