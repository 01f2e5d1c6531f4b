// What a directory lists of a session, when it is a new version, and what it keeps.
#include "server/directory.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "tests/server/heap_extent.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 1, 64, 0, 0};
constexpr LayerShape kWindowed = {1, 1, 64, 0, 100};

class DirectoryTest : public testing::Test {
 protected:
  explicit DirectoryTest(std::vector<LayerShape> layers = {kShape, kShape})
      : session_("id", "tenant", SpecOf(std::move(layers)), nullptr, {}, absl::UnixEpoch()) {}

  static SessionSpec SpecOf(std::vector<LayerShape> layers) {
    SessionSpec spec;
    spec.name = "chat";
    spec.layers = std::move(layers);
    spec.dtype = DType::kFp32;
    spec.codec = Codec::kRaw;
    return spec;
  }
  ExtentRef Exact(int capacity) {
    return NewExtent(budget_, ExactExtentBytes(kShape, DType::kFp32, capacity));
  }
  void Append(size_t index, uint64_t tokens) {
    Layer& layer = session_.layers()[index];
    std::vector<ExtentRef> fresh;
    for (const int capacity : layer.ExtentsFor(tokens)) fresh.push_back(Exact(capacity));
    layer.Append(tokens, fresh, {});
  }
  void AppendToAll(uint64_t tokens) {
    for (size_t i = 0; i < session_.layers().size(); ++i) Append(i, tokens);
  }
  DirectoryRef Newest() { return NewestDirectory(&session_); }

  MemoryBudget budget_{1 << 30, 1 << 30};
  Session session_;
};

TEST_F(DirectoryTest, OfAnEmptySession) {
  const DirectoryRef directory = Newest();
  EXPECT_EQ(directory->version, 1u);
  EXPECT_EQ(directory->generation, 1u);
  EXPECT_EQ(directory->token_count, 0u);
  ASSERT_EQ(directory->layers.size(), 2u);
  EXPECT_TRUE(directory->layers[0].extents.empty());
}

TEST_F(DirectoryTest, ListsWhatEveryLayerHas) {
  Append(0, 100);
  Append(1, 90);
  const DirectoryRef directory = Newest();
  EXPECT_EQ(directory->token_count, 90u);
  for (const Directory::Layer& layer : directory->layers) {
    ASSERT_EQ(layer.runs.size(), 3u);
    ASSERT_EQ(layer.extents.size(), 3u);
    EXPECT_EQ(layer.runs[2].count, 90 - 80);
    EXPECT_EQ(layer.runs[2].data, layer.extents[2]->data());
  }
}

TEST_F(DirectoryTest, IsTheSameUntilSomethingChanges) {
  AppendToAll(20);
  const DirectoryRef first = Newest();
  EXPECT_EQ(Newest(), first);
  // More of one layer is no more of the session.
  Append(0, 1);
  EXPECT_EQ(Newest(), first);
  Append(1, 1);
  const DirectoryRef second = Newest();
  EXPECT_EQ(second->version, 2u);
  EXPECT_EQ(second->token_count, 21u);
  session_.BumpGeneration();
  EXPECT_EQ(Newest()->version, 3u);
}

// Nobody has it: what it would be compared with is gone, and no version is used twice.
TEST_F(DirectoryTest, ADirectoryThatNobodyHoldsIsNotKept) {
  AppendToAll(20);
  EXPECT_EQ(Newest()->version, 1u);
  EXPECT_EQ(Newest()->version, 2u);
}

// The same numbers of tokens, in another place.
TEST_F(DirectoryTest, AnotherExtentIsAnotherVersion) {
  AppendToAll(20);
  const DirectoryRef first = Newest();
  const ExtentRef old = session_.layers()[1].ReplaceOpenExtent(Exact(64));
  const DirectoryRef second = Newest();
  EXPECT_EQ(second->version, 2u);
  EXPECT_FALSE(SameContent(*first, *second));
  EXPECT_EQ(first->layers[1].extents[1], old);
  EXPECT_NE(second->layers[1].extents[1], old);
}

// Freed memory is handed out anew: a run at the same address need not be the same tokens.
TEST_F(DirectoryTest, AnotherExtentAtTheSameAddressIsAnotherContent) {
  const ExtentRef extent = Exact(64);
  Directory first;
  first.layers.resize(1);
  first.layers[0].runs = {{TokenRun::Form::kExact, extent->data(), 64, 0, 64}};
  first.layers[0].extents = {extent};
  Directory second = first;
  EXPECT_TRUE(SameContent(first, second));
  second.layers[0].extents = {Exact(64)};
  EXPECT_FALSE(SameContent(first, second));
}

TEST_F(DirectoryTest, SealingIsAnotherVersionThatKeepsTheOldExtents) {
  AppendToAll(16 + 128);
  const DirectoryRef first = Newest();
  const uint64_t before = budget_.used_bytes();
  Layer& layer = session_.layers()[0];
  layer.Decide({64}, absl::UnixEpoch());
  layer.Seal(NewExtent(budget_, 1000), Codec::kRaw, nullptr);
  const DirectoryRef second = Newest();
  EXPECT_EQ(second->version, 2u);
  EXPECT_EQ(second->layers[0].runs[1].form, TokenRun::Form::kRaw);
  // The tail's block is the first directory's alone.
  EXPECT_EQ(budget_.used_bytes(), before + 1000);
  EXPECT_EQ(first->layers[0].extents[1].use_count(), 1);
}

TEST_F(DirectoryTest, HoldsWhatItListsAfterTheSessionHasDroppedIt) {
  AppendToAll(100);
  DirectoryRef directory = Newest();
  const uint64_t held = budget_.used_bytes();
  for (Layer& layer : session_.layers()) layer.Truncate(0, nullptr);
  EXPECT_EQ(budget_.used_bytes(), held);
  directory = nullptr;
  EXPECT_EQ(budget_.used_bytes(), 0u);
}

TEST_F(DirectoryTest, HasTheWritersRoom) {
  AppendToAll(10);
  const DirectoryRef without = Newest();
  session_.writer() = MappedWriter{"lease", 64, {{Exact(64)}, {Exact(64), Exact(64)}}};
  const DirectoryRef with = Newest();
  EXPECT_EQ(with->version, 2u);
  EXPECT_EQ(with->layers[0].room.size(), 1u);
  EXPECT_EQ(with->layers[1].room, session_.writer()->room[1]);
  session_.writer().reset();
  EXPECT_TRUE(Newest()->layers[0].room.empty());
}

class WindowedDirectoryTest : public DirectoryTest {
 protected:
  WindowedDirectoryTest() : DirectoryTest({kWindowed, kShape}) {}
};

TEST_F(WindowedDirectoryTest, BeginsWhereTheWindowDoes) {
  AppendToAll(16 + 4 * 64);
  session_.layers()[0].DropBefore(16 + 4 * 64 - 1);
  const DirectoryRef directory = Newest();
  EXPECT_EQ(directory->layers[0].first_position, 16 + 2 * 64u);
  EXPECT_EQ(directory->layers[0].runs.size(), 2u);
  EXPECT_EQ(directory->layers[1].first_position, 0u);
  EXPECT_EQ(directory->layers[1].runs.size(), 5u);
}

}  // namespace
}  // namespace kvdepot
