// `kvdepot size` against a running daemon: the same bytes for sessions of many shapes and lengths.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/session_size.h"
#include "gpu/numeric.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"

namespace kvdepot {
namespace {

const StorageChoice kTiny = {Codec::kPlanes, Profile::kTiny, {}};
const StorageChoice kCompact = {Codec::kPlanes, Profile::kCompact, {}};
const StorageChoice kBalanced = {Codec::kPlanes, Profile::kBalanced, {}};
const StorageChoice kFine = {Codec::kPlanes, Profile::kFine, {}};
const StorageChoice kPackKv = {Codec::kPackKv, {}, packkv::DefaultOptions(false)};
const StorageChoice kNormalized = {Codec::kPackKv, {}, packkv::DefaultOptions(true)};
const StorageChoice kRaw = {Codec::kRaw, {}, {}};

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

// Normal values of the session's dtype, so that no segment becomes raw.
std::string Values(DType dtype, size_t count, std::mt19937* random) {
  std::normal_distribution<float> normal;
  std::string bytes(count * DTypeBytes(dtype), '\0');
  for (size_t i = 0; i < count; ++i) {
    const float value = normal(*random);
    if (dtype == DType::kFp32) {
      memcpy(&bytes[4 * i], &value, 4);
      continue;
    }
    const uint16_t bits = dtype == DType::kBf16 ? FloatToBf16(value) : FloatToFp16(value);
    memcpy(&bytes[2 * i], &bits, 2);
  }
  return bytes;
}

class StoredBytesTest : public ::testing::Test {
 protected:
  StoredBytesTest() {
    // Once it answers.
    EXPECT_NE(daemon_.OpenLease(), nullptr);
    auto client = Client::Connect(daemon_.target(), {}, Soon());
    EXPECT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  // What the daemon says of such a session.
  v1::Session Store(const SessionShape& shape, const TokenHistory& history,
                    const StorageChoice& choice) {
    const v1::Session session = Create(shape, choice);
    std::mt19937 random(1);
    if (history.prompt_tokens > 0) Append(session, shape, 0, history.prompt_tokens, &random);
    for (uint64_t i = 0; i < history.decoded_tokens; ++i) {
      Append(session, shape, history.prompt_tokens + i, 1, &random);
    }
    const auto stored = client_->GetSession(session.id(), Soon());
    EXPECT_TRUE(stored.ok()) << stored.status();
    EXPECT_TRUE(client_->DeleteSession(session.id(), Soon()).ok());
    return *stored;
  }

  void ExpectExact(const SessionShape& shape, const TokenHistory& history,
                   const StorageChoice& choice) {
    const SessionSize size = SizeOfSession(shape, history, choice);
    const v1::Session session = Store(shape, history, choice);
    SCOPED_TRACE(testing::Message()
                 << CodecName(choice.codec) << " of profile " << static_cast<int>(choice.profile)
                 << ", " << history.prompt_tokens << " + " << history.decoded_tokens << " tokens");
    EXPECT_EQ(size.stored_bytes, session.stored_bytes());
    EXPECT_EQ(size.logical_bytes, session.logical_bytes());
  }

 private:
  v1::Session Create(const SessionShape& shape, const StorageChoice& choice) {
    v1::CreateSessionRequest request;
    request.set_name(absl::StrCat("session-", ++sessions_));
    request.set_dtype(static_cast<v1::Dtype>(shape.dtype));
    request.set_codec(static_cast<v1::Codec>(choice.codec));
    if (choice.codec == Codec::kPlanes) {
      request.set_profile(static_cast<v1::Profile>(static_cast<int>(choice.profile) + 1));
    }
    request.mutable_packkv()->set_normalize(choice.packkv.normalize);
    for (const LayerGroup& group : shape.groups) {
      for (uint64_t i = 0; i < group.layers; ++i) {
        v1::LayerShape* const layer = request.add_layers();
        layer->set_kv_heads(static_cast<uint32_t>(group.shape.kv_heads));
        layer->set_query_heads(static_cast<uint32_t>(group.shape.kv_heads));
        layer->set_head_dim(static_cast<uint32_t>(group.shape.head_dim));
        layer->set_sliding_window(static_cast<uint32_t>(group.shape.sliding_window));
      }
    }
    if (choice.codec != Codec::kPackKv) request.clear_packkv();
    const auto created = client_->CreateSession(request, Soon());
    EXPECT_TRUE(created.ok()) << created.status();
    return created->session();
  }

  // To all layers, in one addition.
  void Append(const v1::Session& session, const SessionShape& shape, uint64_t position,
              uint64_t tokens, std::mt19937* random) {
    std::vector<std::string> values;
    values.reserve(2 * static_cast<size_t>(session.layers_size()));
    std::vector<LayerTokens> layers;
    for (int i = 0; i < session.layers_size(); ++i) {
      const size_t count = tokens * session.layers(i).kv_heads() * session.layers(i).head_dim();
      const std::string& k = values.emplace_back(Values(shape.dtype, count, random));
      const std::string& v = values.emplace_back(Values(shape.dtype, count, random));
      layers.push_back({static_cast<uint32_t>(i), position, tokens, k, v, {}});
    }
    const auto appended = client_->Append(SessionVersion::Of(session), layers, Soon());
    ASSERT_TRUE(appended.ok()) << appended.status();
  }

  DaemonProcess daemon_{{"--device=cpu"}};
  std::unique_ptr<Client> client_;
  int sessions_ = 0;
};

// At the lengths at which a segment is made, and just below.
TEST_F(StoredBytesTest, PromptsOfEveryLength) {
  const SessionShape shape{{{2, {2, 2, 128, 0, 0}}}, DType::kBf16};
  for (const uint64_t tokens : {1, 15, 16, 17, 80, 143, 144, 255, 256, 271, 272, 1103, 1104, 1167,
                                1168, 1169, 2191, 2192, 3000}) {
    for (const StorageChoice& choice : {kCompact, kRaw}) ExpectExact(shape, {tokens, 0}, choice);
  }
}

TEST_F(StoredBytesTest, EveryProfileShapeAndType) {
  for (const int head_dim : {64, 128, 256}) {
    // Headers of more than 32 heads are longer.
    for (const int kv_heads : {1, 3, 33}) {
      const DType dtype = kv_heads == 1   ? DType::kFp32
                          : kv_heads == 3 ? DType::kBf16
                                          : DType::kFp16;
      const SessionShape shape{{{1, {kv_heads, kv_heads, head_dim, 0, 0}}}, dtype};
      for (const StorageChoice& choice : {kTiny, kCompact, kBalanced, kFine, kRaw}) {
        ExpectExact(shape, {400, 0}, choice);
      }
    }
  }
}

TEST_F(StoredBytesTest, TokensThatComeOneByOne) {
  const SessionShape shape{{{2, {1, 1, 64, 0, 0}}}, DType::kBf16};
  for (const TokenHistory& history :
       {TokenHistory{0, 335}, TokenHistory{0, 336}, TokenHistory{0, 337}, TokenHistory{300, 255},
        TokenHistory{300, 256}, TokenHistory{255, 82}, TokenHistory{1200, 520}}) {
    for (const StorageChoice& choice : {kCompact, kRaw}) ExpectExact(shape, history, choice);
  }
}

TEST_F(StoredBytesTest, LayersWithSlidingWindowsBesideOthers) {
  const SessionShape shape{
      {{1, {1, 1, 64, 0, 0}}, {2, {2, 2, 64, 0, 200}}, {1, {1, 1, 128, 0, 1500}}}, DType::kBf16};
  for (const TokenHistory& history :
       {TokenHistory{1000, 0}, TokenHistory{1000, 1}, TokenHistory{3000, 1}, TokenHistory{0, 230},
        TokenHistory{150, 90}, TokenHistory{300, 700}, TokenHistory{0, 900}}) {
    for (const StorageChoice& choice : {kCompact, kRaw}) ExpectExact(shape, history, choice);
  }
}

TEST_F(StoredBytesTest, PackKvTakesAtMostItsBound) {
  for (const int head_dim : {64, 128, 256}) {
    const SessionShape shape{{{1, {2, 2, head_dim, 0, 0}}}, DType::kBf16};
    for (const StorageChoice& choice : {kPackKv, kNormalized}) {
      const TokenHistory history{2000, 0};
      const SessionSize size = SizeOfSession(shape, history, choice);
      const v1::Session session = Store(shape, history, choice);
      EXPECT_LE(session.stored_bytes(), size.stored_bytes) << head_dim;
      EXPECT_EQ(session.logical_bytes(), size.logical_bytes) << head_dim;
      RecordProperty(absl::StrCat("bound_", head_dim, choice.packkv.normalize ? "n" : ""),
                     absl::StrCat(size.stored_bytes, " for ", session.stored_bytes()));
    }
  }
  // Nothing is sealed yet: then it is exact.
  const SessionShape shape{{{1, {2, 2, 64, 0, 0}}}, DType::kBf16};
  ExpectExact(shape, {255, 0}, kPackKv);
}

}  // namespace
}  // namespace kvdepot
