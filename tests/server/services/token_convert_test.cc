#include "server/services/token_convert.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/server/services/one_buffer.h"

namespace kvdepot {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

void ExpectField(const absl::Status& status, const std::string& field,
                 absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  EXPECT_EQ(status.code(), code) << field << " / " << status;
  EXPECT_TRUE(absl::StartsWith(status.message(), field + ": ")) << field << " / " << status;
}

v1::AppendRequest ValidAppend() {
  v1::AppendRequest request;
  request.mutable_chunk()->set_layer(1);
  request.mutable_chunk()->set_position(5);
  request.mutable_chunk()->set_token_count(2);
  request.mutable_chunk()->set_k("kk");
  request.mutable_chunk()->set_v("vv");
  return request;
}

TEST(ToTokenChunk, ViewsTheMessage) {
  v1::AppendRequest request = ValidAppend();
  request.mutable_query_second_moments()->add_values(3);
  const absl::StatusOr<TokenChunk> chunk = ToTokenChunk(request, Options(), OneBuffer::Finder());
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(chunk->layer, 1);
  EXPECT_EQ(chunk->position, 5u);
  EXPECT_EQ(chunk->token_count, 2u);
  EXPECT_EQ(chunk->k.bytes.data(), request.chunk().k().data());
  EXPECT_EQ(chunk->v.bytes, "vv");
  EXPECT_EQ(chunk->query_second_moments, std::vector<float>{3});
}

TEST(ToTokenChunk, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::AppendRequest&)>& change) {
    v1::AppendRequest request = ValidAppend();
    change(request);
    ExpectField(ToTokenChunk(request, Options(), OneBuffer::Finder()).status(), field);
  };
  refused("chunk", [](auto& r) { r.clear_chunk(); });
  refused("chunk.layer", [](auto& r) { r.mutable_chunk()->set_layer(256); });
  refused("chunk.layer", [](auto& r) { r.mutable_chunk()->set_layer(~0u); });
}

TEST(ToTokenChunk, TakesKAndVFromABuffer) {
  v1::AppendRequest request = ValidAppend();
  request.mutable_chunk()->clear_k();
  request.mutable_chunk()->clear_v();
  *request.mutable_chunk()->mutable_k_range() = RangeOf(0, 16);
  ExpectField(ToTokenChunk(request, Options(), OneBuffer::Finder()).status(), "chunk.v_range");
  *request.mutable_chunk()->mutable_v_range() = RangeOf(16, 16);
  const auto chunk = ToTokenChunk(request, Options(), OneBuffer::Finder());
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(chunk->v.data() - chunk->k.data(), 16);
  EXPECT_NE(chunk->v.buffer, nullptr);
  ExpectField(ToTokenChunk(request, Options(), OneBuffer::Finder(nullptr)).status(),
              "chunk.k_range.buffer", absl::StatusCode::kNotFound);
  Options options;
  options.message_bytes_max = 15;
  ExpectField(ToTokenChunk(request, options, OneBuffer::Finder()).status(),
              "chunk.k_range.size_bytes");
}

v1::AttendRequest ValidAttend() {
  v1::AttendRequest request;
  v1::AttendItem* item = request.add_items();
  item->set_session_id("session");
  item->mutable_queries()->set_token_count(1);
  item->mutable_queries()->set_q("qq");
  item->set_token_count(9);
  return request;
}

TEST(ToAttendQueries, ViewsTheMessage) {
  const v1::AttendRequest request = ValidAttend();
  const auto queries = ToAttendQueries(request, Options(), OneBuffer::Finder());
  ASSERT_TRUE(queries.ok()) << queries.status();
  ASSERT_EQ(queries->size(), 1u);
  EXPECT_EQ((*queries)[0].session_id, "session");
  EXPECT_EQ((*queries)[0].query_tokens, 1u);
  EXPECT_EQ((*queries)[0].q.bytes.data(), request.items(0).queries().q().data());
  EXPECT_EQ((*queries)[0].token_count, 9u);
}

TEST(ToAttendQueries, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::AttendRequest&)>& change) {
    v1::AttendRequest request = ValidAttend();
    change(request);
    ExpectField(ToAttendQueries(request, Options(), OneBuffer::Finder()).status(), field);
  };
  refused("items", [](auto& r) { r.clear_items(); });
  refused("items", [](auto& r) {
    while (r.items_size() < 257) *r.add_items() = r.items(0);
  });
  for (const float bad : {kNan, kInfinity, -1.f})
    refused("scale", [=](auto& r) { r.set_scale(bad); });
  refused("items[1].session_id", [](auto& r) {
    *r.add_items() = r.items(0);
    r.mutable_items(1)->clear_session_id();
  });
  refused("items[0].session_id",
          [](auto& r) { r.mutable_items(0)->set_session_id(std::string(65, 'x')); });
}

TEST(ToAttendQueries, RefusesQueriesWhoseReplyFitsNoMessage) {
  Options options;
  options.message_bytes_max = 1600;
  v1::AttendRequest request = ValidAttend();
  request.mutable_items(0)->mutable_queries()->set_q(std::string(700, 'q'));
  EXPECT_TRUE(ToAttendQueries(request, options, OneBuffer::Finder()).ok());
  request.mutable_items(0)->mutable_queries()->set_q(std::string(701, 'q'));
  ExpectField(ToAttendQueries(request, options, OneBuffer::Finder()).status(), "message_bytes_max",
              absl::StatusCode::kResourceExhausted);
}

v1::DecodeRequest ValidDecode() {
  v1::DecodeRequest request;
  request.set_layer(1);
  v1::DecodeItem* item = request.add_items();
  item->set_session_id("session");
  item->set_generation(4);
  *item->mutable_chunk() = ValidAppend().chunk();
  item->mutable_queries()->set_token_count(2);
  item->mutable_queries()->set_q("qq");
  return request;
}

TEST(ToAttendQueries, TakesQueriesAndResultsInABuffer) {
  v1::AttendRequest request = ValidAttend();
  v1::AttendItem* const item = request.mutable_items(0);
  item->mutable_queries()->clear_q();
  *item->mutable_queries()->mutable_q_range() = RangeOf(0, 64);
  *item->mutable_output_range() = RangeOf(64, 128);
  ExpectField(ToAttendQueries(request, Options(), OneBuffer::Finder()).status(),
              "items[0].log_sum_exp_range");
  *item->mutable_log_sum_exp_range() = RangeOf(192, 16);
  const auto queries = ToAttendQueries(request, Options(), OneBuffer::Finder());
  ASSERT_TRUE(queries.ok()) << queries.status();
  const AttendQuery& query = (*queries)[0];
  EXPECT_EQ(query.output.data - query.q.data(), 64);
  EXPECT_EQ(query.log_sum_exp.data - query.q.data(), 192);
  EXPECT_EQ(query.log_sum_exp.size_bytes, 16u);
  item->mutable_output_range()->set_size_bytes(kBufferBytes);
  ExpectField(ToAttendQueries(request, Options(), OneBuffer::Finder()).status(),
              "items[0].output_range.size_bytes");
}

TEST(ToAttendQueries, CountsTheReplyOfQueriesInABuffer) {
  v1::AttendRequest request = ValidAttend();
  v1::AttendItem* const item = request.mutable_items(0);
  item->mutable_queries()->clear_q();
  *item->mutable_queries()->mutable_q_range() = RangeOf(0, 64);
  Options options;
  options.message_bytes_max = 128;
  ExpectField(ToAttendQueries(request, options, OneBuffer::Finder()).status(), "message_bytes_max",
              absl::StatusCode::kResourceExhausted);
  *item->mutable_output_range() = RangeOf(0, 128);
  *item->mutable_log_sum_exp_range() = RangeOf(0, 128);
  EXPECT_TRUE(ToAttendQueries(request, options, OneBuffer::Finder()).ok());
}

TEST(ToDecodeSteps, ViewsTheMessage) {
  const v1::DecodeRequest request = ValidDecode();
  const auto steps = ToDecodeSteps(request, Options(), OneBuffer::Finder());
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_EQ((*steps)[0].generation, 4u);
  EXPECT_EQ((*steps)[0].chunk.k.bytes, "kk");
  EXPECT_EQ((*steps)[0].q.bytes, "qq");
  EXPECT_EQ((*steps)[0].query_tokens, 2u);
}

TEST(ToDecodeSteps, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::DecodeRequest&)>& change) {
    v1::DecodeRequest request = ValidDecode();
    change(request);
    ExpectField(ToDecodeSteps(request, Options(), OneBuffer::Finder()).status(), field);
  };
  refused("items", [](auto& r) { r.clear_items(); });
  refused("scale", [](auto& r) { r.set_scale(kNan); });
  refused("items[0].session_id", [](auto& r) { r.mutable_items(0)->clear_session_id(); });
  refused("items[0].chunk.layer",
          [](auto& r) { r.mutable_items(0)->mutable_chunk()->set_layer(~0u); });
}

TEST(ToProto, MovesBytesIntoTheReply) {
  AttendResult result;
  result.output = std::string(1000, 'o');
  result.log_sum_exp = "l";
  result.token_count = 7;
  const char* bytes = result.output.data();
  v1::AttendOutput output;
  ToProto(std::move(result), &output);
  EXPECT_EQ(output.output().data(), bytes);
  EXPECT_EQ(output.token_count(), 7u);

  FetchedTokens tokens;
  tokens.position = 3;
  tokens.token_count = 2;
  tokens.k = "k";
  tokens.v = "v";
  v1::TokenChunk chunk;
  ToProto(4, std::move(tokens), &chunk);
  EXPECT_EQ(chunk.layer(), 4u);
  EXPECT_EQ(chunk.position(), 3u);
  EXPECT_EQ(chunk.token_count(), 2u);
  EXPECT_EQ(chunk.v(), "v");
}

}  // namespace
}  // namespace kvdepot
