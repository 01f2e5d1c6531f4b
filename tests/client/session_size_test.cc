// How many sessions fit, against the daemon's own allocator. (That a session's bytes are those of a
// daemon: tests/integration/stored_bytes_test.cc.)
#include "client/session_size.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gpu/slab_pool.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

// Addresses without memory behind them: the pool touches no byte.
class NoMemory final : public SlabMemory {
 public:
  explicit NoMemory(size_t size_bytes)
      // NOLINTNEXTLINE(performance-no-int-to-ptr)
      : SlabMemory(reinterpret_cast<std::byte*>(uintptr_t{1} << 40), size_bytes) {}
};

absl::StatusOr<std::unique_ptr<SlabMemory>> MakeNoMemory(size_t size_bytes, ExtentUse) {
  return std::unique_ptr<SlabMemory>(std::make_unique<NoMemory>(size_bytes));
}

// How many sessions a pool takes, one after the other.
uint64_t SessionsInPool(const SessionSize& size, uint64_t budget_bytes) {
  SlabPool pool(&MakeNoMemory, kSlabBytesDefault, budget_bytes);
  std::vector<std::unique_ptr<Extent>> extents;
  const auto add = [&](const ExtentCounts& counts, ExtentUse use) {
    for (const auto& [size_bytes, count] : counts) {
      for (uint64_t i = 0; i < count; ++i) {
        auto extent = pool.Allocate("tenant", use, size_bytes);
        if (!extent.ok()) return false;
        extents.push_back(*std::move(extent));
      }
    }
    return true;
  };
  uint64_t sessions = 0;
  while ((sessions + 1) * size.stored_bytes <= budget_bytes &&
         add(size.sealed_extents, ExtentUse::kSealed) &&
         add(size.exact_extents, ExtentUse::kTail)) {
    ++sessions;
  }
  return sessions;
}

TEST(SessionSizeTest, SoManySessionsFitIntoTheDaemonsSlabs) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  for (const StorageChoice& choice :
       {StorageChoice{Codec::kPlanes, Profile::kCompact, {}}, StorageChoice{Codec::kRaw, {}, {}}}) {
    for (const uint64_t tokens : {1u, 100u, 1104u, 9000u}) {
      for (const uint64_t budget_bytes : {kGiB / 64, kGiB / 2, 4 * kGiB}) {
        const SessionShape shape{{{4, {8, 8, 128, 0, 0}}}, DType::kBf16};
        const SessionSize size = SizeOfSession(shape, {tokens, 0}, choice);
        const uint64_t promised = SessionsThatFit(size, budget_bytes);
        const uint64_t taken = SessionsInPool(size, budget_bytes);
        SCOPED_TRACE(testing::Message()
                     << CodecName(choice.codec) << ", " << tokens << " tokens in " << budget_bytes);
        EXPECT_LE(promised, taken);
        // Where slabs are a small part of the budget no more than a tenth is left untold.
        if (budget_bytes == 4 * kGiB) {
          EXPECT_GE(promised, taken * 9 / 10);
        }
      }
    }
  }
}

TEST(SessionSizeTest, NothingFitsIntoTooLittle) {
  const SessionShape shape{{{4, {8, 8, 128, 0, 0}}}, DType::kBf16};
  const SessionSize size = SizeOfSession(shape, {1000, 0}, {});
  EXPECT_EQ(SessionsThatFit(size, 1), 0u);
  EXPECT_EQ(SessionsThatFit(size, size.stored_bytes - 1), 0u);
}

TEST(SessionSizeTest, TokensAreThoseOfLayersThatGrow) {
  const LayerShape full{2, 2, 128, 0, 0};
  const LayerShape sliding{2, 2, 128, 0, 512};
  const auto token_bytes = [](std::vector<LayerGroup> groups) {
    return SizeOfSession({std::move(groups), DType::kBf16}, {4096, 0}, {Codec::kRaw, {}, {}})
        .token_bytes;
  };
  // 2 tensors of 2 heads of 128 in bf16, and a header of 128 bytes for 1024 tokens.
  EXPECT_EQ(token_bytes({{1, full}}), 1024 + 0.125);
  EXPECT_EQ(token_bytes({{3, full}, {5, sliding}}), 3 * (1024 + 0.125));
}

}  // namespace
}  // namespace kvdepot
