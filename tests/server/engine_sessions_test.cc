// Sessions as records: created, found, listed, expired, deleted; draining.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 2, 64, 0, 0};

std::vector<std::string> Names(const std::vector<SessionInfo>& infos) {
  std::vector<std::string> names;
  for (const SessionInfo& info : infos) names.push_back(info.spec.name);
  return names;
}

TEST(EngineSessionsTest, ANewSessionIsEmpty) {
  TestEngine engine;
  const absl::StatusOr<SessionInfo> info = engine.Create(Spec("chat", Codec::kRaw, kShape, 3));
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->id.size(), 32u);
  EXPECT_EQ(info->generation, 1u);
  EXPECT_EQ(info->layers.size(), 3u);
  EXPECT_EQ(info->committed_token_count, 0u);
  EXPECT_EQ(info->durable_token_count, 0u);
  EXPECT_EQ(info->stored_bytes, 0u);
  EXPECT_EQ(info->create_time, engine.clock().Now());
  EXPECT_EQ(info->expire_time, absl::InfiniteFuture());
  EXPECT_EQ(engine->session_count(), 1u);
}

TEST(EngineSessionsTest, NamesAreAnyTextWithoutControlCharacters) {
  TestEngine engine;
  for (const char* name : {" ", "f\xC3\xBCr\xC2\xA0=\"x\"", "\xE2\x82\xAC"}) {
    EXPECT_TRUE(engine.Create(Spec(name, Codec::kRaw, kShape)).ok()) << name;
  }
}

TEST(EngineSessionsTest, CreatingAgainReturnsTheSameSession) {
  TestEngine engine;
  const SessionSpec spec = Spec("chat", Codec::kRaw, kShape);
  bool created = false;
  const auto first = engine->CreateSession(engine.caller(), spec, &created);
  EXPECT_TRUE(created);
  SessionSpec again = spec;
  again.time_to_live = absl::Hours(1);
  again.query_second_moments = {std::vector<float>(64, 1)};
  const auto second = engine->CreateSession(engine.caller(), again, &created);
  EXPECT_FALSE(created);
  EXPECT_EQ(first->id, second->id);
}

TEST(EngineSessionsTest, AnotherSessionOfThatNameIsRefusedByItsFirstDifference) {
  TestEngine engine;
  const SessionSpec spec = Spec("chat", Codec::kPlanes, kShape);
  ASSERT_TRUE(engine.Create(spec).ok());
  const auto differs = [&engine](const SessionSpec& other) {
    const absl::Status status = engine.Create(other).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
    return std::string(status.message());
  };
  const std::string where = " in the session named chat";
  SessionSpec other = spec;
  other.layers[0].soft_cap = 30;
  other.model = "other";
  EXPECT_EQ(differs(other), "layers[0].soft_cap: 30, is 0" + where);
  other = spec;
  other.layers.push_back(kShape);
  EXPECT_EQ(differs(other), "layers: 2 entries, is 1" + where);
  other = spec;
  other.dtype = DType::kBf16;
  EXPECT_EQ(differs(other), "dtype: bf16, is fp32" + where);
  other = spec;
  other.codec = Codec::kRaw;
  EXPECT_EQ(differs(other), "codec: raw, is planes" + where);
  other = spec;
  other.profile = Profile::kFine;
  EXPECT_EQ(differs(other), "profile: fine, is compact" + where);
  other = spec;
  other.model = "other";
  EXPECT_EQ(differs(other), "model: \"other\", is \"model\"" + where);
}

TEST(EngineSessionsTest, NamesBelongToTheirTenant) {
  TestEngine engine;
  const SessionInfo mine = *engine.Create(Spec("chat", Codec::kRaw, kShape));
  engine.caller().tenant = "other";
  const SessionInfo theirs = *engine.Create(Spec("chat", Codec::kRaw, kShape));
  EXPECT_NE(mine.id, theirs.id);
  EXPECT_EQ(engine->GetSession(engine.caller(), mine.id, "").status(),
            absl::NotFoundError("session_id: " + mine.id + ", unknown"));
  EXPECT_EQ(engine->DeleteSession(engine.caller(), mine.id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine->GetSession(engine.caller(), "", "chat")->id, theirs.id);
  EXPECT_EQ(engine->GetSession(engine.caller(), "", "nobody").status(),
            absl::NotFoundError("name: nobody, unknown"));
}

TEST(EngineSessionsTest, SessionsAreListedInPages) {
  TestEngine engine;
  for (const char* name : {"c", "a", "b"}) {
    ASSERT_TRUE(engine.Create(Spec(name, Codec::kRaw, kShape)).ok());
  }
  using Strings = std::vector<std::string>;
  EXPECT_EQ(Names(engine->ListSessions(engine.caller(), "", 1)), Strings({"a"}));
  EXPECT_EQ(Names(engine->ListSessions(engine.caller(), "", 9)), Strings({"a", "b", "c"}));
  EXPECT_EQ(Names(engine->ListSessions(engine.caller(), "b", 9)), Strings({"c"}));
}

TEST(EngineSessionsTest, ATenantHasALimitOfSessions) {
  EngineOptions options;
  options.sessions_per_tenant_max = 1;
  TestEngine engine(options);
  const SessionInfo first = *engine.Create(Spec("a", Codec::kRaw, kShape));
  EXPECT_EQ(engine.Create(Spec("b", Codec::kRaw, kShape)).status(),
            absl::ResourceExhaustedError("sessions_per_tenant_max: 1 of 1 sessions exist"));
  EXPECT_TRUE(engine->DeleteSession(engine.caller(), first.id).ok());
  EXPECT_TRUE(engine.Create(Spec("b", Codec::kRaw, kShape)).ok());
}

TEST(EngineSessionsTest, AnIdleSessionExpiresAndItsNameIsFree) {
  TestEngine engine;
  SessionSpec spec = Spec("chat", Codec::kRaw, kShape);
  spec.time_to_live = absl::Minutes(10);
  const SessionInfo session = *engine.Create(spec);
  EXPECT_EQ(session.expire_time, engine.clock().Now() + absl::Minutes(10));
  engine.clock().Advance(absl::Minutes(9));
  ASSERT_TRUE(engine->TouchSession(engine.caller(), session.id).ok());
  engine.clock().Advance(absl::Minutes(9));
  EXPECT_EQ(engine.Get(session.id).id, session.id);
  engine.clock().Advance(absl::Minutes(1));
  EXPECT_EQ(engine->GetSession(engine.caller(), session.id, "").status().code(),
            absl::StatusCode::kNotFound);
  // Not reaped yet, and yet free.
  spec.model = "another";
  EXPECT_TRUE(engine.Create(spec).ok());
  engine->ExpireSessions();
  EXPECT_EQ(engine->session_count(), 1u);
  engine->CheckInvariants();
}

TEST(EngineSessionsTest, ExpiryFreesMemoryAndUsesPutItOff) {
  TestEngine engine;
  std::mt19937 random(1);
  SessionSpec spec = Spec("chat", Codec::kRaw, kShape);
  spec.time_to_live = absl::Seconds(10);
  const SessionInfo session = *engine.Create(spec);
  const std::vector<float> q = RandomQueries(random, kShape, 1);
  engine.clock().Advance(absl::Seconds(9));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 20)}).ok());
  engine.clock().Advance(absl::Seconds(9));
  ASSERT_TRUE(engine.Attend(0, {Query(session.id, kShape, q)}).ok());
  engine.clock().Advance(absl::Seconds(9));
  ASSERT_TRUE(engine.Fetch(session.id, 0, 0, 1).ok());
  engine.clock().Advance(absl::Seconds(9));
  engine->ExpireSessions();
  EXPECT_GT(engine->used_bytes(), 0u);
  engine.clock().Advance(absl::Seconds(1));
  engine->ExpireSessions();
  EXPECT_EQ(engine->used_bytes(), 0u);
}

TEST(EngineSessionsTest, AnOpenAdditionKeepsItsSessionAlive) {
  TestEngine engine;
  std::mt19937 random(1);
  SessionSpec spec = Spec("chat", Codec::kRaw, kShape);
  spec.time_to_live = absl::Seconds(10);
  const SessionInfo session = *engine.Create(spec);
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  ASSERT_TRUE(addition.ok());
  engine.clock().Advance(absl::Hours(1));
  engine->ExpireSessions();
  const ModelTokens tokens = RandomTokens(random, kShape, 20);
  EXPECT_TRUE(engine.AppendChunk(**addition, Chunk(0, 0, kShape, tokens)).ok());
  EXPECT_TRUE(engine.Finish(**addition).ok());
  engine.clock().Advance(absl::Seconds(9));
  EXPECT_EQ(engine.Get(session.id).committed_token_count, 20u);
}

TEST(EngineSessionsTest, AnAdditionEndsWhenItsSessionIsDeleted) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(Spec("chat", Codec::kRaw, kShape));
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  ASSERT_TRUE(addition.ok());
  const ModelTokens tokens = RandomTokens(random, kShape, 20);
  ASSERT_TRUE(engine.AppendChunk(**addition, Chunk(0, 0, kShape, tokens)).ok());
  ASSERT_TRUE(engine->DeleteSession(engine.caller(), session.id).ok());
  engine->CheckInvariants();
  EXPECT_EQ(engine.AppendChunk(**addition, Chunk(0, 20, kShape, tokens)).status(),
            absl::NotFoundError("session_id: " + session.id + ", deleted meanwhile"));
  EXPECT_EQ(engine.Finish(**addition).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine->used_bytes(), 0u);
  engine->CheckInvariants();
}

TEST(EngineSessionsTest, WhileDrainingNothingNewBegins) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(Spec("chat", Codec::kRaw, kShape));
  const ModelTokens tokens = RandomTokens(random, kShape, 20);
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  ASSERT_TRUE(addition.ok());
  // The addition is in flight: its time is up at once, but it may go on.
  engine->Drain(absl::InfinitePast());
  EXPECT_TRUE(engine.AppendChunk(**addition, Chunk(0, 0, kShape, tokens)).ok());
  EXPECT_TRUE(engine.Finish(**addition).ok());
  engine->Drain(absl::InfiniteFuture());

  const absl::Status draining = absl::UnavailableError("draining: the daemon is about to end");
  const std::vector<float> q = RandomQueries(random, kShape, 1);
  EXPECT_EQ(engine.Create(Spec("new", Codec::kRaw, kShape)).status(), draining);
  EXPECT_EQ(engine->BeginAppend(engine.caller(), session.id, 1).status(), draining);
  EXPECT_EQ(engine.Attend(0, {Query(session.id, kShape, q)}).status(), draining);
  EXPECT_EQ(
      engine.Decode(0, {Step(session, 0, 20, kShape, RandomTokens(random, kShape, 1), q)}).status(),
      draining);
  EXPECT_EQ(engine.Fetch(session.id, 0, 0, 0).status(), draining);
  EXPECT_EQ(engine.Truncate(session, 0).status(), draining);
  EXPECT_EQ(engine.Seal(session).status(), draining);
  EXPECT_EQ(engine.Get(session.id).committed_token_count, 20u);
  EXPECT_TRUE(engine->DeleteSession(engine.caller(), session.id).ok());
}

TEST(EngineSessionsTest, TotalsAddUpSessionsByCodec) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo raw = *engine.Create(Spec("raw", Codec::kRaw, kShape));
  const SessionInfo planes = *engine.Create(Spec("planes", Codec::kPlanes, kShape));
  ASSERT_TRUE(engine.Append(raw, 0, 0, {RandomTokens(random, kShape, 20)}).ok());
  ASSERT_TRUE(engine.Append(planes, 0, 0, {RandomTokens(random, kShape, 400)}).ok());
  const EngineTotals totals = engine->totals();
  EXPECT_EQ(totals.Of(Codec::kRaw).logical, 20 * 2 * 64 * 4u);
  EXPECT_EQ(totals.Of(Codec::kRaw).stored, (16 + 64) * 2 * 64 * 4u);
  EXPECT_EQ(totals.Of(Codec::kPlanes).logical, 400 * 2 * 64 * 4u);
  EXPECT_EQ(totals.Of(Codec::kPlanes).stored, engine.Get(planes.id).stored_bytes);
  EXPECT_EQ(totals.Of(Codec::kRaw).stored + totals.Of(Codec::kPlanes).stored, engine->used_bytes());
}

}  // namespace
}  // namespace kvdepot
