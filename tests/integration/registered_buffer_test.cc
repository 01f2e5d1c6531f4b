// Registered buffers against a daemon in a process of its own, on the device under test: calls that
// read and write them do what calls with bytes do, and what is not theirs is refused.
#include "client/registered_buffer.h"

#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/shown_memory.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

constexpr int kTokens = 900;
constexpr size_t kRowBytes = kRowValues * sizeof(float);
constexpr size_t kTensorBytes = kTokens * kRowBytes;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

std::string DeviceFlag() {
  const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
  return absl::StrCat("--device=", device == nullptr ? "cpu" : device);
}

class RegisteredBufferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    lease_ = daemon_.OpenLease();
    ASSERT_NE(lease_, nullptr);
    auto client = Client::Connect(daemon_.target(), {}, Soon());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    by_bytes_ = *client_->GetSession(daemon_.CreateSession("bytes"), Soon());
    by_buffer_ = *client_->GetSession(daemon_.CreateSession("buffer"), Soon());
  }

  // The same tokens for both sessions: as bytes, and through `memory`.
  void AppendBoth(ShownMemory* memory) {
    const v1::TokenChunk tokens = Chunk(0, 0, kTokens);
    LayerTokens bytes;
    bytes.token_count = kTokens;
    bytes.k = tokens.k();
    bytes.v = tokens.v();
    ASSERT_TRUE(client_->Append(SessionVersion::Of(by_bytes_), {bytes}, Soon()).ok());
    memory->Write(0, tokens.k());
    memory->Write(kTensorBytes, tokens.v());
    LayerTokens ranges;
    ranges.token_count = kTokens;
    ranges.k_range = memory->buffer().Range(0, kTensorBytes);
    ranges.v_range = memory->buffer().Range(kTensorBytes, kTensorBytes);
    const auto appended = client_->Append(SessionVersion::Of(by_buffer_), {ranges}, Soon());
    ASSERT_TRUE(appended.ok()) << appended.status();
    EXPECT_EQ(appended->layers(0).state().token_count(), static_cast<uint64_t>(kTokens));
    EXPECT_GT(appended->layers(0).state().sealed_end(), 256u);
  }
  v1::FetchRequest FetchOf(const v1::Session& session, v1::Dtype dtype) {
    v1::FetchRequest request;
    request.set_session_id(session.id());
    request.set_position(3);
    request.set_token_count(kTokens - 5);
    request.set_dtype(dtype);
    return request;
  }

  DaemonProcess daemon_{{DeviceFlag()}};
  std::shared_ptr<Lease> lease_;
  std::unique_ptr<Client> client_;
  v1::Session by_bytes_;
  v1::Session by_buffer_;
};

TEST_F(RegisteredBufferTest, AppendAndFetchDoWhatTheyDoWithBytes) {
  const auto memory = ShownMemory::Make(lease_, 2 * kTensorBytes);
  ASSERT_NE(memory, nullptr);
  AppendBoth(memory.get());
  for (const v1::Dtype dtype : {v1::DTYPE_FP32, v1::DTYPE_BF16}) {
    const size_t bytes = (kTokens - 5) * kRowBytes / (dtype == v1::DTYPE_BF16 ? 2 : 1);
    std::string k(bytes, 0), v(bytes, 0);
    const auto fetched =
        client_->Fetch(FetchOf(by_bytes_, dtype), absl::MakeSpan(k), absl::MakeSpan(v), Soon());
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    const std::string canary(16, 'c');
    memory->Write(0, std::string(2 * kTensorBytes, 'c'));
    v1::FetchRequest request = FetchOf(by_buffer_, dtype);
    *request.mutable_k_range() = memory->buffer().Range(16, bytes);
    *request.mutable_v_range() = memory->buffer().Range(kTensorBytes, bytes);
    const auto in_place = client_->Fetch(request, {}, {}, Soon());
    ASSERT_TRUE(in_place.ok()) << in_place.status();
    EXPECT_EQ(*in_place, static_cast<uint64_t>(kTokens - 5));
    EXPECT_EQ(memory->Read(16, bytes), k);
    EXPECT_EQ(memory->Read(kTensorBytes, bytes), v);
    EXPECT_EQ(memory->Read(0, 16), canary);
    EXPECT_EQ(memory->Read(16 + bytes, 16), canary);
    EXPECT_EQ(memory->Read(kTensorBytes + bytes, 16), canary);
  }
}

TEST_F(RegisteredBufferTest, AttendAndDecodeDoWhatTheyDoWithBytes) {
  constexpr int kQueries = 3;
  constexpr size_t kQueryBytes = kQueries * kQueryValues * sizeof(float);
  constexpr size_t kLogBytes = kQueries * kQueryHeads * sizeof(float);
  const auto memory = ShownMemory::Make(lease_, 2 * kTensorBytes);
  ASSERT_NE(memory, nullptr);
  AppendBoth(memory.get());
  const v1::QueryTokens queries = Queries(5, kQueries);
  memory->Write(0, queries.q());
  const auto use_buffer = [&](auto* item) {
    item->mutable_queries()->clear_q();
    *item->mutable_queries()->mutable_q_range() = memory->buffer().Range(0, kQueryBytes);
    *item->mutable_output_range() = memory->buffer().Range(4096, kQueryBytes);
    *item->mutable_log_sum_exp_range() = memory->buffer().Range(16384, kLogBytes);
  };
  const auto expect_in_buffer = [&](const v1::AttendOutput& expected, const v1::AttendOutput& got) {
    EXPECT_EQ(got.output(), "");
    EXPECT_EQ(got.log_sum_exp(), "");
    EXPECT_EQ(got.token_count(), expected.token_count());
    EXPECT_EQ(memory->Read(4096, kQueryBytes), expected.output());
    EXPECT_EQ(memory->Read(16384, kLogBytes), expected.log_sum_exp());
  };
  v1::AttendRequest attend = AttendOf(by_bytes_, 0, queries);
  const uint64_t token_count = kTokens - 1;
  attend.mutable_items(0)->set_token_count(token_count);
  const auto expected = client_->Attend(attend, Soon());
  ASSERT_TRUE(expected.ok()) << expected.status();
  attend.mutable_items(0)->set_session_id(by_buffer_.id());
  use_buffer(attend.mutable_items(0));
  const auto in_place = client_->Attend(attend, Soon());
  ASSERT_TRUE(in_place.ok()) << in_place.status();
  expect_in_buffer(expected->items(0), in_place->items(0));

  v1::DecodeRequest decode = DecodeOf(by_bytes_, 0, kTokens, kQueries);
  *decode.mutable_items(0)->mutable_queries() = queries;
  const auto decode_stream = client_->OpenDecode(Soon());
  const auto decoded = decode_stream->Step(decode);
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  decode.mutable_items(0)->set_session_id(by_buffer_.id());
  use_buffer(decode.mutable_items(0));
  v1::TokenChunk* const chunk = decode.mutable_items(0)->mutable_chunk();
  memory->Write(32768, chunk->k());
  memory->Write(65536, chunk->v());
  *chunk->mutable_k_range() = memory->buffer().Range(32768, chunk->k().size());
  *chunk->mutable_v_range() = memory->buffer().Range(65536, chunk->v().size());
  chunk->clear_k();
  chunk->clear_v();
  const auto decoded_in_place = decode_stream->Step(decode);
  ASSERT_TRUE(decoded_in_place.ok()) << decoded_in_place.status();
  expect_in_buffer(decoded->items(0), decoded_in_place->items(0));
}

TEST_F(RegisteredBufferTest, ValuesThatAreNotFiniteAreNamedAndNothingIsStored) {
  const auto memory = ShownMemory::Make(lease_, 4096);
  ASSERT_NE(memory, nullptr);
  std::vector<float> values(2 * kRowValues, 1);
  values[200] = -std::numeric_limits<float>::infinity();
  memory->Write(0, Bytes(values));
  memory->Write(2048, Bytes(std::vector<float>(2 * kRowValues, 1)));
  LayerTokens tokens;
  tokens.token_count = 2;
  tokens.k_range = memory->buffer().Range(2048, 2 * kRowBytes);
  tokens.v_range = memory->buffer().Range(0, 2 * kRowBytes);
  const auto refused = client_->Append(SessionVersion::Of(by_buffer_), {tokens}, Soon());
  EXPECT_TRUE(absl::IsInvalidArgument(refused.status()));
  EXPECT_EQ(refused.status().message(), "chunk.v: -inf at index 200 of 256 values, must be finite");
  EXPECT_EQ(client_->GetSession(by_buffer_.id(), Soon())->layer_states(0).token_count(), 0u);
}

TEST_F(RegisteredBufferTest, SizesThatDoNotFitAreNamed) {
  const auto memory = ShownMemory::Make(lease_, 2 * kTensorBytes);
  ASSERT_NE(memory, nullptr);
  AppendBoth(memory.get());
  v1::FetchRequest fetch = FetchOf(by_buffer_, v1::DTYPE_FP32);
  const size_t bytes = (kTokens - 5) * kRowBytes;
  *fetch.mutable_k_range() = memory->buffer().Range(0, bytes);
  const auto error = [&] { return client_->Fetch(fetch, {}, {}, Soon()).status().ToString(); };
  EXPECT_TRUE(absl::StrContains(error(), "v_range: not set, must be as k_range is")) << error();
  *fetch.mutable_v_range() = memory->buffer().Range(0, bytes - 16);
  EXPECT_TRUE(absl::StrContains(error(), absl::StrCat("v_range.size_bytes: ", bytes - 16)))
      << error();
  v1::AttendRequest attend = AttendOf(by_buffer_, 0, Queries(1, 1));
  attend.mutable_items(0)->set_token_count(kTokens);
  *attend.mutable_items(0)->mutable_output_range() =
      memory->buffer().Range(0, kQueryValues * sizeof(float));
  *attend.mutable_items(0)->mutable_log_sum_exp_range() = memory->buffer().Range(4096, 4);
  EXPECT_TRUE(absl::StrContains(client_->Attend(attend, Soon()).status().message(),
                                "items[0].log_sum_exp_range.size_bytes: 4 bytes, must be 16"));
}

TEST_F(RegisteredBufferTest, ABufferIsItsLeasesUntilItIsUnregistered) {
  auto memory = ShownMemory::Make(lease_, 4096);
  ASSERT_NE(memory, nullptr);
  LayerTokens tokens;
  tokens.token_count = 1;
  tokens.k_range = memory->buffer().Range(0, kRowBytes);
  tokens.v_range = memory->buffer().Range(0, kRowBytes);
  memory->Write(0, Bytes(std::vector<float>(kRowValues, 1)));
  const auto append = [&] {
    return client_->Append(SessionVersion::Of(by_buffer_), {tokens}, Soon()).status();
  };
  EXPECT_TRUE(append().ok());
  memory = nullptr;
  EXPECT_TRUE(absl::IsNotFound(append())) << append();
  memory = ShownMemory::Make(lease_, 4096);
  ASSERT_NE(memory, nullptr);
  tokens.k_range = tokens.v_range = memory->buffer().Range(0, kRowBytes);
  const auto other_lease = daemon_.OpenLease();
  tokens.k_range.set_lease_id(other_lease->id());
  EXPECT_TRUE(absl::IsNotFound(append())) << append();
  tokens.k_range.set_lease_id("none");
  EXPECT_TRUE(absl::IsNotFound(append())) << append();
}

}  // namespace
}  // namespace kvdepot
