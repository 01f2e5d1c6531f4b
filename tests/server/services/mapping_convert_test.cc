// Requests of mapped sessions field by field, and directories as differences to what a client has.
#include "server/services/mapping_convert.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "tests/server/heap_extent.h"

namespace kvdepot {
namespace {

constexpr uint64_t kExtentBytes = 512;

// Where it is said to lie, without memory of its own there.
class PlacedExtent final : public Extent {
 public:
  explicit PlacedExtent(SlabPlace place) : Extent(nullptr, kExtentBytes, place) {}
};

v1::MapSessionRequest MapRequestOf(v1::MapAccess access) {
  v1::MapSessionRequest request;
  request.set_lease_id("lease");
  request.set_session_id("session");
  request.set_access(access);
  request.set_have_version(3);
  request.set_room_tokens(100);
  return request;
}

TEST(MappingConvertTest, AMapRequest) {
  const absl::StatusOr<MapRequest> map = ToMapRequest(MapRequestOf(v1::MAP_ACCESS_WRITE));
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->lease_id, "lease");
  EXPECT_EQ(map->session_id, "session");
  EXPECT_TRUE(map->write);
  EXPECT_EQ(map->have_version, 3u);
  EXPECT_EQ(map->room_tokens, 100u);
  EXPECT_FALSE(ToMapRequest(MapRequestOf(v1::MAP_ACCESS_READ))->write);
}

TEST(MappingConvertTest, AMapRequestNamesItsWrongField) {
  v1::MapSessionRequest request = MapRequestOf(v1::MAP_ACCESS_UNSPECIFIED);
  EXPECT_EQ(ToMapRequest(request).status(),
            absl::InvalidArgumentError("access: 0, must be READ or WRITE"));
  request.set_access(static_cast<v1::MapAccess>(7));
  EXPECT_EQ(ToMapRequest(request).status(),
            absl::InvalidArgumentError("access: 7, must be READ or WRITE"));
  request.clear_session_id();
  EXPECT_EQ(ToMapRequest(request).status().message().substr(0, 11), "session_id:");
  request.clear_lease_id();
  EXPECT_EQ(ToMapRequest(request).status(),
            absl::InvalidArgumentError("lease_id: 0 bytes, must be 1..64"));
}

TEST(MappingConvertTest, ACommitRequest) {
  v1::CommitRequest request;
  request.set_lease_id("lease");
  request.set_session_id("session");
  request.set_generation(2);
  request.set_token_count(300);
  request.set_room_tokens(64);
  request.set_have_version(5);
  const absl::StatusOr<CommitRequest> commit = ToCommitRequest(request);
  ASSERT_TRUE(commit.ok()) << commit.status();
  EXPECT_EQ(commit->lease_id, "lease");
  EXPECT_EQ(commit->session_id, "session");
  EXPECT_EQ(commit->generation, 2u);
  EXPECT_EQ(commit->token_count, 300u);
  EXPECT_EQ(commit->room_tokens, 64u);
  EXPECT_EQ(commit->have_version, 5u);
  request.set_lease_id(std::string(65, 'x'));
  EXPECT_EQ(ToCommitRequest(request).status(),
            absl::InvalidArgumentError("lease_id: 65 bytes, must be 1..64"));
}

TEST(MappingConvertTest, VersionsAndEpochsAreNamedInPairs) {
  EXPECT_TRUE(CheckLayoutVersion(kLayoutVersion).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(CheckLayoutVersion(kLayoutVersion + 1)));
  EXPECT_TRUE(CheckEpoch(5, 5).ok());
  EXPECT_EQ(CheckEpoch(0xAB, 0xCD),
            absl::FailedPreconditionError(
                "epoch: 00000000000000ab, the daemon's is 00000000000000cd: it was started anew, "
                "drop all mappings"));
}

TEST(MappingConvertTest, ASlabNotice) {
  v1::MappedSlab slab;
  ToProto(SlabNotice{9, 2 << 20, true, RegionKind::kSharedMemory, "GPU-a", "handle"}, &slab);
  EXPECT_EQ(slab.serial(), 9u);
  EXPECT_EQ(slab.size_bytes(), uint64_t{2} << 20);
  EXPECT_TRUE(slab.writable());
  EXPECT_EQ(slab.kind(), v1::MAPPED_SLAB_KIND_SHARED_MEMORY);
  EXPECT_EQ(slab.device(), "GPU-a");
  EXPECT_EQ(slab.cuda_ipc_handle(), "handle");
}

class MappedDirectoryTest : public testing::Test {
 protected:
  ExtentRef At(uint64_t serial, uint64_t offset) {
    return std::make_shared<StoredExtent>(
        StoredExtent{*budget_.Reserve("tenant", kExtentBytes),
                     std::make_unique<PlacedExtent>(SlabPlace{serial, offset})});
  }
  static void Add(Directory::Layer* layer, const ExtentRef& extent, TokenRun::Form form,
                  int capacity, int first, int count) {
    layer->extents.push_back(extent);
    layer->runs.push_back({form, nullptr, capacity, first, count});
  }
  // Sinks and three blocks of the tail, the last one with 10 tokens.
  Directory Tail() {
    Directory directory;
    directory.version = 4;
    directory.generation = 2;
    directory.token_count = 16 + 64 + 64 + 10;
    directory.layers.resize(1);
    Add(&directory.layers[0], At(1, 0), TokenRun::Form::kExact, 16, 0, 16);
    for (const int count : {64, 64, 10}) {
      Add(&directory.layers[0], At(1, 512), TokenRun::Form::kExact, 64, 0, count);
    }
    return directory;
  }
  static v1::MappedDirectory Convert(const Directory& directory, const Directory* base,
                                     bool for_writer = false) {
    MapReply reply;
    reply.directory = std::make_shared<Directory>(directory);
    if (base != nullptr) reply.base = std::make_shared<Directory>(*base);
    reply.for_writer = for_writer;
    reply.slabs = {{1, 2 << 20, true, RegionKind::kSharedMemory, "", ""}};
    v1::MappedDirectory proto;
    ToProto(reply, &proto);
    return proto;
  }

  MemoryBudget budget_{1 << 20, 1 << 20};
};

TEST_F(MappedDirectoryTest, WithoutABaseAllIsTold) {
  const v1::MappedDirectory proto = Convert(Tail(), nullptr);
  EXPECT_EQ(proto.version(), 4u);
  EXPECT_EQ(proto.generation(), 2u);
  EXPECT_EQ(proto.token_count(), 154u);
  EXPECT_EQ(proto.slabs_size(), 1);
  ASSERT_EQ(proto.layers_size(), 1);
  const v1::MappedLayer& layer = proto.layers(0);
  EXPECT_EQ(layer.dropped_extents() + layer.kept_extents(), 0u);
  ASSERT_EQ(layer.extents_size(), 4);
  const v1::MappedExtent& last = layer.extents(3);
  EXPECT_EQ(last.slab(), 1u);
  EXPECT_EQ(last.offset(), 512u);
  EXPECT_EQ(last.size_bytes(), kExtentBytes);
  EXPECT_EQ(last.form(), v1::MAPPED_FORM_EXACT);
  EXPECT_EQ(last.capacity(), 64u);
  EXPECT_EQ(last.first_token(), 0u);
  EXPECT_EQ(last.token_count(), 10u);
}

// The last extent has more tokens than the client knows of: it is told again, the others are not.
TEST_F(MappedDirectoryTest, OfAGrownTailOnlyTheGrowthIsTold) {
  const Directory base = Tail();
  Directory grown = base;
  grown.layers[0].runs.back().count = 64;
  Add(&grown.layers[0], At(1, 1024), TokenRun::Form::kExact, 64, 0, 1);
  const v1::MappedLayer layer = Convert(grown, &base).layers(0);
  EXPECT_EQ(layer.dropped_extents(), 0u);
  EXPECT_EQ(layer.kept_extents(), 3u);
  ASSERT_EQ(layer.extents_size(), 2);
  EXPECT_EQ(layer.extents(0).token_count(), 64u);
  EXPECT_EQ(layer.extents(1).offset(), 1024u);
}

TEST_F(MappedDirectoryTest, ASealedPartIsAnotherExtent) {
  const Directory base = Tail();
  Directory sealed = base;
  sealed.layers[0].extents.erase(sealed.layers[0].extents.begin() + 1,
                                 sealed.layers[0].extents.begin() + 3);
  sealed.layers[0].runs.erase(sealed.layers[0].runs.begin() + 1, sealed.layers[0].runs.begin() + 3);
  sealed.layers[0].extents.insert(sealed.layers[0].extents.begin() + 1, At(2, 0));
  sealed.layers[0].runs.insert(sealed.layers[0].runs.begin() + 1,
                               {TokenRun::Form::kPlanes, nullptr, 128, 0, 128});
  const v1::MappedLayer layer = Convert(sealed, &base).layers(0);
  EXPECT_EQ(layer.kept_extents(), 1u);
  ASSERT_EQ(layer.extents_size(), 2);
  EXPECT_EQ(layer.extents(0).slab(), 2u);
  EXPECT_EQ(layer.extents(0).form(), v1::MAPPED_FORM_PLANES);
  EXPECT_EQ(layer.extents(0).token_count(), 128u);
}

TEST_F(MappedDirectoryTest, WhatLeftTheWindowIsDropped) {
  const Directory base = Tail();
  Directory later = base;
  Directory::Layer& layer = later.layers[0];
  layer.first_position = 80;
  layer.extents.erase(layer.extents.begin(), layer.extents.begin() + 2);
  layer.runs.erase(layer.runs.begin(), layer.runs.begin() + 2);
  const v1::MappedLayer proto = Convert(later, &base).layers(0);
  EXPECT_EQ(proto.first_position(), 80u);
  EXPECT_EQ(proto.dropped_extents(), 2u);
  EXPECT_EQ(proto.kept_extents(), 2u);
  EXPECT_EQ(proto.extents_size(), 0);
}

TEST_F(MappedDirectoryTest, RoomIsForTheWriterAlone) {
  Directory directory = Tail();
  directory.layers[0].room = {At(3, 0), At(3, 512)};
  EXPECT_EQ(Convert(directory, nullptr, /*for_writer=*/false).layers(0).room_size(), 0);
  const v1::MappedLayer layer = Convert(directory, nullptr, /*for_writer=*/true).layers(0);
  ASSERT_EQ(layer.room_size(), 2);
  EXPECT_EQ(layer.room(0).capacity(), 64u);
  EXPECT_EQ(layer.room(0).token_count(), 0u);
  EXPECT_EQ(layer.room(1).offset(), 512u);
  // Of a layer without tokens the first is for the sinks.
  Directory empty;
  empty.layers.resize(1);
  empty.layers[0].room = directory.layers[0].room;
  EXPECT_EQ(Convert(empty, nullptr, true).layers(0).room(0).capacity(), 16u);
  EXPECT_EQ(Convert(empty, nullptr, true).layers(0).room(1).capacity(), 64u);
}

TEST_F(MappedDirectoryTest, ACalibrationIsToldOnce) {
  auto calibration = std::make_shared<LayerCalibration>();
  calibration->hash_prefix.fill(7);
  calibration->heads.resize(1);
  calibration->heads[0].k.pattern = 3;
  calibration->heads[0].v.pattern = 5;
  calibration->heads[0].k.order = {1, 0};
  const Directory base = Tail();
  Directory directory = base;
  directory.layers[0].calibration = calibration;
  const v1::MappedCalibration proto = Convert(directory, &base).layers(0).calibration();
  EXPECT_EQ(proto.hash_prefix(), std::string(16, '\x07'));
  ASSERT_EQ(proto.heads_size(), 1);
  EXPECT_EQ(proto.heads(0).k_order(), std::string("\x01\x00", 2));
  EXPECT_EQ(proto.heads(0).k_pattern(), 3u);
  EXPECT_EQ(proto.heads(0).v_pattern(), 5u);
  EXPECT_FALSE(Convert(directory, &directory).layers(0).has_calibration());
}

}  // namespace
}  // namespace kvdepot
