// Positions, extents and slots of one layer. Bytes are the engine's matter (engine_*_test).
#include "server/layer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "tests/server/heap_extent.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 1, 64, 0, 0};
constexpr LayerShape kWindowed = {1, 1, 64, 0, 100};
constexpr absl::Time kNow = absl::UnixEpoch();

class LayerTest : public testing::Test {
 protected:
  explicit LayerTest(const LayerShape& shape = kShape) : layer_(shape, DType::kFp32, nullptr, {}) {}

  ExtentRef Exact(int capacity) {
    return NewExtent(budget_, ExactExtentBytes(kShape, DType::kFp32, capacity));
  }
  void Append(uint64_t tokens) {
    std::vector<ExtentRef> fresh;
    for (const int capacity : layer_.ExtentsFor(tokens)) fresh.push_back(Exact(capacity));
    layer_.Append(tokens, fresh, {});
    layer_.CheckInvariants();
  }
  void Seal(Codec codec = Codec::kPlanes) {
    layer_.Seal(NewExtent(budget_, 1000), codec, nullptr);
    layer_.CheckInvariants();
  }
  void Truncate(uint64_t token_count) {
    const absl::optional<CutExtent> cut = layer_.ExtentCutBy(token_count);
    layer_.Truncate(token_count, cut.has_value() ? Exact(cut->capacity) : nullptr);
    layer_.CheckInvariants();
  }
  // {capacity, first, count} of each run.
  std::vector<std::vector<int>> Runs(uint64_t begin, uint64_t end) {
    std::vector<std::vector<int>> runs;
    for (const TokenRun& run : layer_.View(begin, end).runs) {
      runs.push_back({run.capacity, run.first, run.count});
    }
    return runs;
  }

  MemoryBudget budget_{1 << 30, 1 << 30};
  Layer layer_;
};

using Ints = std::vector<int>;
using Rows = std::vector<std::vector<int>>;

TEST_F(LayerTest, ExtentsAreTakenWhenTheyAreNeeded) {
  EXPECT_EQ(layer_.ExtentsFor(0), Ints());
  EXPECT_EQ(layer_.ExtentsFor(1), Ints({16}));
  EXPECT_EQ(layer_.ExtentsFor(16), Ints({16}));
  EXPECT_EQ(layer_.ExtentsFor(17), Ints({16, 64}));
  EXPECT_EQ(layer_.ExtentsFor(145), Ints({16, 64, 64, 64}));
  Append(10);
  EXPECT_EQ(layer_.ExtentsFor(6), Ints());
  EXPECT_EQ(layer_.ExtentsFor(7), Ints({64}));
  Append(70);
  EXPECT_EQ(layer_.ExtentsFor(1), Ints({64}));
}

TEST_F(LayerTest, TokensGoToTheNextFreeSlots) {
  Append(10);
  std::vector<ExtentRef> fresh = {Exact(64), Exact(64)};
  const std::vector<Placement> placements = layer_.Place(6 + 64 + 5, fresh);
  ASSERT_EQ(placements.size(), 3u);
  EXPECT_EQ(placements[0].capacity, 16);
  EXPECT_EQ(placements[0].first_slot, 10);
  EXPECT_EQ(placements[0].count, 6);
  EXPECT_EQ(placements[1].extent, fresh[0]->data());
  EXPECT_EQ(placements[1].from, 6);
  EXPECT_EQ(placements[1].count, 64);
  EXPECT_EQ(placements[2].extent, fresh[1]->data());
  EXPECT_EQ(placements[2].first_slot, 0);
  EXPECT_EQ(placements[2].count, 5);
}

TEST_F(LayerTest, AViewIsCutAtBothEnds) {
  Append(400);
  layer_.Decide({128, 64}, kNow);
  Seal();
  EXPECT_EQ(Runs(0, 400),
            Rows({{16, 0, 16}, {128, 0, 128}, {64, 0, 64}, {64, 0, 64}, {64, 0, 64}, {64, 0, 64}}));
  EXPECT_EQ(Runs(15, 17), Rows({{16, 15, 1}, {128, 0, 1}}));
  EXPECT_EQ(Runs(20, 150), Rows({{128, 4, 124}, {64, 0, 6}}));
  EXPECT_EQ(Runs(300, 300), Rows());
}

TEST_F(LayerTest, ARunSaysHowItsTokensAreStored) {
  Append(400);
  layer_.Decide({128, 64}, kNow);
  Seal(Codec::kPlanes);
  Seal(Codec::kRaw);
  const std::vector<TokenRun> runs = layer_.View(0, 210).runs;
  ASSERT_EQ(runs.size(), 4u);
  EXPECT_EQ(runs[0].form, TokenRun::Form::kExact);
  EXPECT_EQ(runs[1].form, TokenRun::Form::kPlanes);
  EXPECT_EQ(runs[2].form, TokenRun::Form::kRaw);
  EXPECT_EQ(runs[3].form, TokenRun::Form::kExact);
}

TEST_F(LayerTest, AViewKeepsItsExtents) {
  Append(100);
  const LayerView view = layer_.View(0, 100);
  Truncate(0);
  EXPECT_EQ(layer_.stored_bytes(), 0u);
  ASSERT_EQ(view.extents.size(), 3u);
  EXPECT_EQ(view.runs[2].data, view.extents[2]->data());
  EXPECT_EQ(budget_.used_bytes(), (16 + 2 * 64) * 2 * 64 * 4u);
}

TEST_F(LayerTest, DueTokensAreDecidedButNotSealed) {
  Append(16 + 400);
  EXPECT_EQ(layer_.undecided_tokens(), 400u);
  layer_.Decide({128, 64}, kNow);
  EXPECT_EQ(layer_.undecided_tokens(), 208u);
  EXPECT_EQ(layer_.state().sealed_end, 0u);
  const DueSegment due = layer_.Due(0);
  EXPECT_EQ(due.position, 16u);
  EXPECT_EQ(due.token_count, 128);
  EXPECT_EQ(due.blocks.size(), 2u);
  EXPECT_EQ(layer_.Due(1).position, 144u);
  EXPECT_EQ(layer_.Due(1).token_count, 64);
  EXPECT_EQ(layer_.Due(1).blocks.size(), 1u);
  EXPECT_NE(layer_.Due(1).blocks[0], due.blocks[1]);
  Seal();
  EXPECT_EQ(layer_.state().sealed_end, 144u);
  EXPECT_EQ(layer_.undecided_tokens(), 208u);
  Seal();
  EXPECT_EQ(layer_.due_count(), 0u);
}

TEST_F(LayerTest, OnlyATruncationInsideAnExactExtentCopies) {
  Append(16 + 400);
  layer_.Decide({128}, kNow);
  Seal();
  EXPECT_FALSE(layer_.ExtentCutBy(416).has_value());
  EXPECT_FALSE(layer_.ExtentCutBy(144 + 64).has_value());
  EXPECT_FALSE(layer_.ExtentCutBy(144).has_value());
  EXPECT_FALSE(layer_.ExtentCutBy(100).has_value());
  EXPECT_FALSE(layer_.ExtentCutBy(16).has_value());
  EXPECT_FALSE(layer_.ExtentCutBy(0).has_value());
  const absl::optional<CutExtent> tail = layer_.ExtentCutBy(144 + 64 + 3);
  ASSERT_TRUE(tail.has_value());
  EXPECT_EQ(tail->kept, 3);
  EXPECT_EQ(tail->extent, layer_.View(144 + 64, 144 + 65).extents[0]);
  const absl::optional<CutExtent> sinks = layer_.ExtentCutBy(5);
  ASSERT_TRUE(sinks.has_value());
  EXPECT_EQ(sinks->capacity, 16);
  EXPECT_EQ(sinks->kept, 5);
}

TEST_F(LayerTest, AfterATruncationInsideASegmentTheTailBeginsThere) {
  Append(16 + 400);
  layer_.Decide({128, 128}, kNow);
  Seal();
  Seal();
  Truncate(200);
  EXPECT_EQ(layer_.state().sealed_end, 200u);
  EXPECT_EQ(layer_.undecided_tokens(), 0u);
  EXPECT_EQ(Runs(100, 200), Rows({{128, 84, 44}, {128, 0, 56}}));
  Append(70);
  EXPECT_EQ(layer_.undecided_tokens(), 70u);
  EXPECT_EQ(Runs(199, 270), Rows({{128, 55, 1}, {64, 0, 64}, {64, 0, 6}}));
  layer_.Decide({64}, kNow);
  Seal();
  EXPECT_EQ(layer_.state().sealed_end, 264u);
}

TEST_F(LayerTest, ATruncationDropsDueSegmentsThatLoseTokens) {
  Append(16 + 400);
  layer_.Decide({128, 128}, kNow);
  Truncate(16 + 255);
  EXPECT_EQ(layer_.Due(0).token_count, 128);
  EXPECT_EQ(layer_.undecided_tokens(), 127u);
  Truncate(16 + 127);
  EXPECT_EQ(layer_.due_count(), 0u);
}

TEST_F(LayerTest, BelowTheSinksNothingElseIsLeft) {
  Append(16 + 400);
  layer_.Decide({128}, kNow);
  Seal();
  Truncate(7);
  EXPECT_EQ(layer_.state().sealed_end, 0u);
  EXPECT_EQ(Runs(0, 7), Rows({{16, 0, 7}}));
  Append(20);
  EXPECT_EQ(Runs(0, 27), Rows({{16, 0, 16}, {64, 0, 11}}));
}

class WindowedLayerTest : public LayerTest {
 protected:
  WindowedLayerTest() : LayerTest(kWindowed) {}
};

TEST_F(WindowedLayerTest, WholeExtentsThatNoQuerySeesGo) {
  Append(16 + 640);
  layer_.Decide({128, 128, 128}, kNow);
  Seal();
  Seal();
  EXPECT_TRUE(layer_.DropBefore(114).empty());  // Sees from 15 on.
  EXPECT_EQ(layer_.first_held(), 0u);
  EXPECT_EQ(layer_.DropBefore(115).size(), 1u);  // The sinks.
  EXPECT_EQ(layer_.first_held(), 16u);
  layer_.CheckInvariants();
  EXPECT_EQ(layer_.DropBefore(242).size(), 0u);  // Sees from 143 on.
  EXPECT_EQ(layer_.DropBefore(243).size(), 1u);
  EXPECT_EQ(layer_.first_held(), 144u);
  // The second segment, and the third one, which is due: two blocks of the tail at once.
  EXPECT_EQ(layer_.DropBefore(498).size(), 1u);
  EXPECT_EQ(layer_.DropBefore(499).size(), 2u);
  EXPECT_EQ(layer_.due_count(), 0u);
  EXPECT_EQ(layer_.first_held(), 400u);
  EXPECT_EQ(layer_.DropBefore(563).size(), 1u);
  EXPECT_EQ(layer_.first_held(), 464u);
  layer_.CheckInvariants();
  Truncate(0);
  EXPECT_EQ(layer_.first_held(), 0u);
  Append(5);
}

}  // namespace
}  // namespace kvdepot
