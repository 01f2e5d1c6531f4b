#include "server/services/token_convert.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

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
  const absl::StatusOr<TokenChunk> chunk = ToTokenChunk(request, EngineOptions());
  ASSERT_TRUE(chunk.ok()) << chunk.status();
  EXPECT_EQ(chunk->layer, 1);
  EXPECT_EQ(chunk->position, 5u);
  EXPECT_EQ(chunk->token_count, 2u);
  EXPECT_EQ(chunk->k.data(), request.chunk().k().data());
  EXPECT_EQ(chunk->v, "vv");
  EXPECT_EQ(chunk->query_second_moments, std::vector<float>{3});
}

TEST(ToTokenChunk, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::AppendRequest&)>& change) {
    v1::AppendRequest request = ValidAppend();
    change(request);
    ExpectField(ToTokenChunk(request, EngineOptions()).status(), field);
  };
  refused("chunk", [](auto& r) { r.clear_chunk(); });
  refused("chunk.layer", [](auto& r) { r.mutable_chunk()->set_layer(256); });
  refused("chunk.layer", [](auto& r) { r.mutable_chunk()->set_layer(~0u); });
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
  const auto queries = ToAttendQueries(request, Options());
  ASSERT_TRUE(queries.ok()) << queries.status();
  ASSERT_EQ(queries->size(), 1u);
  EXPECT_EQ((*queries)[0].session_id, "session");
  EXPECT_EQ((*queries)[0].query_tokens, 1u);
  EXPECT_EQ((*queries)[0].q.data(), request.items(0).queries().q().data());
  EXPECT_EQ((*queries)[0].token_count, 9u);
}

TEST(ToAttendQueries, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::AttendRequest&)>& change) {
    v1::AttendRequest request = ValidAttend();
    change(request);
    ExpectField(ToAttendQueries(request, Options()).status(), field);
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
  EXPECT_TRUE(ToAttendQueries(request, options).ok());
  request.mutable_items(0)->mutable_queries()->set_q(std::string(701, 'q'));
  ExpectField(ToAttendQueries(request, options).status(), "message_bytes_max",
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

TEST(ToDecodeSteps, ViewsTheMessage) {
  const v1::DecodeRequest request = ValidDecode();
  const auto steps = ToDecodeSteps(request, Options());
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_EQ((*steps)[0].generation, 4u);
  EXPECT_EQ((*steps)[0].chunk.k, "kk");
  EXPECT_EQ((*steps)[0].q, "qq");
  EXPECT_EQ((*steps)[0].query_tokens, 2u);
}

TEST(ToDecodeSteps, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::DecodeRequest&)>& change) {
    v1::DecodeRequest request = ValidDecode();
    change(request);
    ExpectField(ToDecodeSteps(request, Options()).status(), field);
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
