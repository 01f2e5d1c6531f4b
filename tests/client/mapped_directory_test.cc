// A daemon's directory is not believed: whatever lies outside a slab, overlaps its end, or does not
// fit together is refused before anything is read.
#include "client/mapped_directory.h"

#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gpu/backend.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

constexpr uint64_t kSlab = 5;
constexpr uint64_t kSlabBytes = 1 << 20;

// Memory of this process, as if it were mapped.
class HeapRegion final : public MappedRegion {
 public:
  explicit HeapRegion(std::vector<std::byte>* bytes) : MappedRegion(bytes->data(), bytes->size()) {}
};

class MappedDirectoryTest : public ::testing::Test {
 protected:
  MappedDirectoryTest() {
    v1::Session session;
    session.set_dtype(v1::DTYPE_FP32);
    v1::LayerShape* const layer = session.add_layers();
    layer->set_kv_heads(1);
    layer->set_query_heads(2);
    layer->set_head_dim(64);
    shape_ = *MappedShape::Of(session);

    // Sinks, a raw segment of 64, 30 tokens of a tail, and room for 64.
    directory_.set_version(3);
    directory_.set_generation(2);
    directory_.set_token_count(16 + 64 + 30);
    v1::MappedLayer* const mapped = directory_.add_layers();
    Add(mapped->add_extents(), v1::MAPPED_FORM_EXACT, 0, 16, 16);
    Add(mapped->add_extents(), v1::MAPPED_FORM_RAW, 8192, 64, 64);
    Add(mapped->add_extents(), v1::MAPPED_FORM_EXACT, 65536, 64, 30);
    Add(mapped->add_room(), v1::MAPPED_FORM_EXACT, 131072, 64, 0);
  }

  void Add(v1::MappedExtent* extent, v1::MappedForm form, uint64_t offset, uint32_t capacity,
           uint32_t tokens) {
    extent->set_slab(kSlab);
    extent->set_offset(offset);
    extent->set_form(form);
    extent->set_capacity(capacity);
    extent->set_token_count(tokens);
    const size_t header = form == v1::MAPPED_FORM_RAW ? 128 : 0;
    extent->set_size_bytes(header + 2 * 64 * sizeof(float) * capacity);
  }

  absl::StatusOr<std::shared_ptr<MappedDirectory>> Read(const v1::MappedDirectory& message,
                                                        const MappedDirectory* base = nullptr) {
    return MappedDirectory::Read(message, base, shape_, [this](uint64_t serial) {
      return serial == kSlab ? region_ : nullptr;
    });
  }
  // The code of reading `directory_` after `change`.
  absl::StatusCode CodeAfter(const std::function<void(v1::MappedLayer*)>& change) {
    v1::MappedDirectory changed = directory_;
    change(changed.mutable_layers(0));
    return Read(changed).status().code();
  }

  std::vector<std::byte> bytes_ = std::vector<std::byte>(kSlabBytes);
  RegionRef region_ = std::make_shared<HeapRegion>(&bytes_);
  MappedShape shape_;
  v1::MappedDirectory directory_;
};

TEST_F(MappedDirectoryTest, SaysWhereTokensLieAndWhereMoreGo) {
  const auto read = Read(directory_);
  ASSERT_TRUE(read.ok()) << read.status();
  const MappedDirectory& directory = **read;
  EXPECT_EQ(directory.version, 3u);
  EXPECT_EQ(directory.generation, 2u);
  EXPECT_EQ(directory.room_tokens(), 34u + 64u);
  const std::vector<FreeSlots> slots = directory.layers[0].free_slots();
  ASSERT_EQ(slots.size(), 2u);
  EXPECT_EQ(slots[0].extent, bytes_.data() + 65536);
  EXPECT_EQ(slots[0].first_slot, 30);
  EXPECT_EQ(slots[0].count, 34);
  EXPECT_EQ(slots[1].extent, bytes_.data() + 131072);
  const std::vector<TokenRun> runs = directory.layers[0].RunsWith(35);
  ASSERT_EQ(runs.size(), 4u);
  EXPECT_EQ(runs[1].form, TokenRun::Form::kRaw);
  EXPECT_EQ(runs[2].count, 64);
  EXPECT_EQ(runs[3].count, 1);
  EXPECT_EQ(directory.layers[0].RunsWith(0).size(), 3u);
}

// How long a `packkv` segment is its bytes say, and those are read whole before anybody attends.
TEST_F(MappedDirectoryTest, SegmentsOfPackKvAreCheckedToTheirLastByte) {
  const LayerShape layer = {1, 2, 64, 0, 0};
  std::vector<float> values(2 * 64 * 64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101);
  const std::byte* const blocks[] = {reinterpret_cast<const std::byte*>(values.data())};
  EncodeJob job;
  job.source = {layer, DType::kFp32, blocks};
  job.codec = Codec::kPackKv;
  job.segment = bytes_.data() + 8192;
  MakeCpuBackend(1)->Encode({&job, 1});
  ASSERT_TRUE(job.in_range);
  v1::MappedExtent* const extent = directory_.mutable_layers(0)->mutable_extents(1);
  extent->set_form(v1::MAPPED_FORM_PACKKV);
  extent->set_size_bytes(job.size_bytes);
  // Not the session's codec.
  EXPECT_EQ(Read(directory_).status().code(), absl::StatusCode::kDataLoss);
  shape_.codec = Codec::kPackKv;
  const auto read = Read(directory_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->layers[0].extents[1].run.form, TokenRun::Form::kPackKv);

  const auto refused = [this](const v1::MappedDirectory& message) {
    const absl::Status status = Read(message).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    return std::string(status.message());
  };
  v1::MappedDirectory changed = directory_;
  changed.mutable_layers(0)->mutable_extents(1)->set_size_bytes(job.size_bytes - 16);
  EXPECT_NE(refused(changed).find("length"), std::string::npos);
  changed = directory_;
  changed.mutable_layers(0)->mutable_extents(1)->set_capacity(128);
  changed.mutable_layers(0)->mutable_extents(1)->set_token_count(128);
  EXPECT_NE(refused(changed).find("of packkv, 128 tokens"), std::string::npos);
  std::byte& order = bytes_[8192 + 128 + 64 + 512];
  order = std::byte{64};
  EXPECT_NE(refused(directory_).find("order of block 0"), std::string::npos);

  // Whole, but of another codec than the message says.
  job.source.dtype = DType::kBf16;
  job.codec = Codec::kRaw;
  MakeCpuBackend(1)->Encode({&job, 1});
  directory_.mutable_layers(0)->mutable_extents(1)->set_size_bytes(job.size_bytes);
  EXPECT_NE(refused(directory_).find("a raw segment"), std::string::npos);
}

TEST_F(MappedDirectoryTest, PlacesOutsideTheSlab) {
  const uint64_t huge = std::numeric_limits<uint64_t>::max();
  for (const uint64_t offset : {kSlabBytes, kSlabBytes - 256, huge, huge - 255, huge - 8191}) {
    for (int extent = 0; extent < 3; ++extent) {
      EXPECT_EQ(CodeAfter([&](v1::MappedLayer* layer) {
                  layer->mutable_extents(extent)->set_offset(offset);
                }),
                absl::StatusCode::kDataLoss);
    }
    EXPECT_EQ(
        CodeAfter([&](v1::MappedLayer* layer) { layer->mutable_room(0)->set_offset(offset); }),
        absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(
      CodeAfter([](v1::MappedLayer* layer) { layer->mutable_extents(1)->set_offset(8192 + 8); }),
      absl::StatusCode::kDataLoss);
}

TEST_F(MappedDirectoryTest, SizesThatDoNotHoldTheirTokens) {
  for (int extent = 0; extent < 3; ++extent) {
    for (const uint64_t size : {uint64_t{0}, uint64_t{256}, std::numeric_limits<uint64_t>::max()}) {
      EXPECT_EQ(CodeAfter([&](v1::MappedLayer* layer) {
                  layer->mutable_extents(extent)->set_size_bytes(size);
                }),
                absl::StatusCode::kDataLoss);
    }
    for (const uint32_t capacity : {0u, 1u, 63u, 100000u, 0xFFFFFFFFu}) {
      EXPECT_EQ(CodeAfter([&](v1::MappedLayer* layer) {
                  layer->mutable_extents(extent)->set_capacity(capacity);
                }),
                absl::StatusCode::kDataLoss);
    }
    for (const uint32_t first : {1u, 64u, 65u, 0xFFFFFFFFu}) {
      EXPECT_EQ(CodeAfter([&](v1::MappedLayer* layer) {
                  layer->mutable_extents(extent)->set_first_token(first);
                  layer->mutable_extents(extent)->set_token_count(64);
                }),
                absl::StatusCode::kDataLoss);
    }
  }
}

TEST_F(MappedDirectoryTest, FormsThatDoNotExistOrLackACalibration) {
  for (const int form : {0, 2, 9, -1}) {
    EXPECT_EQ(CodeAfter([&](v1::MappedLayer* layer) {
                layer->mutable_extents(1)->set_form(static_cast<v1::MappedForm>(form));
              }),
              absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(CodeAfter([](v1::MappedLayer* layer) {
              layer->mutable_calibration()->set_hash_prefix(std::string(16, 'h'));
              layer->mutable_calibration()->add_heads()->set_k_order(std::string(64, '\1'));
            }),
            absl::StatusCode::kDataLoss);
}

TEST_F(MappedDirectoryTest, CountsThatDisagree) {
  v1::MappedDirectory more = directory_;
  more.set_token_count(111);
  EXPECT_EQ(Read(more).status().code(), absl::StatusCode::kDataLoss);
  v1::MappedDirectory layers = directory_;
  *layers.add_layers() = directory_.layers(0);
  EXPECT_EQ(Read(layers).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(MappedDirectoryTest, ASlabThatIsNotMapped) {
  EXPECT_EQ(CodeAfter([](v1::MappedLayer* layer) { layer->mutable_extents(0)->set_slab(6); }),
            absl::StatusCode::kNotFound);
}

TEST_F(MappedDirectoryTest, KeepsWhatItsBaseSaysAndNoMore) {
  const auto base = Read(directory_);
  ASSERT_TRUE(base.ok());
  v1::MappedDirectory next;
  next.set_version(4);
  next.set_generation(2);
  next.set_token_count(16 + 64);
  v1::MappedLayer* const layer = next.add_layers();
  layer->set_kept_extents(2);
  const auto read = Read(next, base->get());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->layers[0].extents.size(), 2u);
  // A sliding window has left the sinks behind.
  layer->set_first_position(16);
  layer->set_dropped_extents(1);
  layer->set_kept_extents(1);
  ASSERT_TRUE(Read(next, base->get()).ok());
  for (const uint32_t kept : {3u, 4u, 0xFFFFFFFFu}) {
    layer->set_kept_extents(kept);
    EXPECT_EQ(Read(next, base->get()).status().code(), absl::StatusCode::kDataLoss);
  }
  layer->set_kept_extents(1);
  layer->set_dropped_extents(0xFFFFFFFF);
  EXPECT_EQ(Read(next, base->get()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Read(next).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(MappedDirectoryTest, ShapesThatAreNone) {
  v1::Session session;
  session.set_dtype(v1::DTYPE_FP32);
  v1::LayerShape* const layer = session.add_layers();
  layer->set_kv_heads(2);
  layer->set_query_heads(4);
  layer->set_head_dim(128);
  ASSERT_TRUE(MappedShape::Of(session).ok());
  const auto code_after = [&](const std::function<void(v1::Session*)>& change) {
    v1::Session changed = session;
    change(&changed);
    return MappedShape::Of(changed).status().code();
  };
  EXPECT_EQ(code_after([](v1::Session* s) { s->set_dtype(v1::DTYPE_UNSPECIFIED); }),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code_after([](v1::Session* s) { s->mutable_layers(0)->set_kv_heads(0); }),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code_after([](v1::Session* s) { s->mutable_layers(0)->set_query_heads(5); }),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code_after([](v1::Session* s) { s->mutable_layers(0)->set_head_dim(100); }),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(code_after([](v1::Session* s) { s->mutable_layers(0)->set_sliding_window(1u << 31); }),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace kvdepot
