// Every error of the contract, with its message. A refused call changes nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/server/engine_fixture.h"
#include "tests/server/failing_backend.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {2, 4, 64, 0, 0};

// One session with 100 tokens in layer 0 and 90 in layer 1; every test ends with it unchanged.
class EngineErrorsTest : public testing::Test {
 protected:
  EngineErrorsTest() {
    options_.tokens_per_session_max = 110;
    options_.query_tokens_max = 32;
    options_.batch_sessions_max = 2;
    options_.queued_requests_per_tenant_max = 2;
    engine_ = std::make_unique<TestEngine>(options_);
    session_ = *engine_->Create(Spec("s", Codec::kRaw, kShape, 2));
    EXPECT_TRUE(engine_->Append(session_, 0, 0, {RandomTokens(random_, kShape, 100)}).ok());
    EXPECT_TRUE(engine_->Append(session_, 1, 0, {RandomTokens(random_, kShape, 90)}).ok());
  }
  ~EngineErrorsTest() override {
    (*engine_)->CheckInvariants();
    const SessionInfo after = engine_->Get(session_.id);
    EXPECT_EQ(after.generation, 1u);
    EXPECT_EQ(after.layers[0].token_count, 100u);
    EXPECT_EQ(after.layers[1].token_count, 90u);
  }

  // What one chunk, changed by `change`, gives.
  absl::Status AppendError(const std::function<void(TokenChunk&)>& change) {
    auto addition = (*engine_)->BeginAppend(engine_->caller(), session_.id, 1);
    EXPECT_TRUE(addition.ok());
    TokenChunk chunk = Chunk(0, 100, kShape, tokens_);
    change(chunk);
    return engine_->AppendChunk(**addition, chunk).status();
  }
  absl::Status AttendError(const std::function<void(AttendQuery&)>& change) {
    AttendQuery query = Query(session_.id, kShape, q_);
    change(query);
    return engine_->Attend(0, {query}).status();
  }
  absl::Status DecodeError(const std::function<void(DecodeStep&)>& change) {
    DecodeStep step = Step(session_, 0, 100, kShape, tokens_, q_);
    change(step);
    return engine_->Decode(0, {step}).status();
  }

  std::mt19937 random_{1};
  EngineOptions options_;
  std::unique_ptr<TestEngine> engine_;
  SessionInfo session_;
  const ModelTokens tokens_ = RandomTokens(random_, kShape, 2);
  const std::vector<float> q_ = RandomQueries(random_, kShape, 2);
};

using absl::InvalidArgumentError;
using absl::OutOfRangeError;

TEST_F(EngineErrorsTest, SessionsThatMakeNoSense) {
  const auto error = [this](const std::function<void(SessionSpec&)>& change) {
    SessionSpec spec = Spec("new", Codec::kPlanes, kShape, 2);
    change(spec);
    return engine_->Create(spec).status();
  };
  EXPECT_EQ(error([](SessionSpec& s) { s.name = ""; }),
            InvalidArgumentError("name: 0 bytes, must be 1..256"));
  EXPECT_EQ(error([](SessionSpec& s) { s.name = std::string(257, 'n'); }),
            InvalidArgumentError("name: 257 bytes, must be 1..256"));
  EXPECT_EQ(error([](SessionSpec& s) { s.model = std::string(257, 'n'); }),
            InvalidArgumentError("model: 257 bytes, must be 0..256"));
  EXPECT_EQ(
      error([](SessionSpec& s) { s.name = "ab\x1b[2J"; }),
      InvalidArgumentError("name: byte 0x1b at position 2, must be free of control characters"));
  // U+009B, which some terminals take for the same.
  EXPECT_EQ(
      error([](SessionSpec& s) { s.model = "\xC2\x9B"; }),
      InvalidArgumentError("model: byte 0xc2 at position 0, must be free of control characters"));
  EXPECT_EQ(error([](SessionSpec& s) { s.layers.clear(); }),
            InvalidArgumentError("layers: 0 entries, must be 1..256"));
  EXPECT_EQ(error([](SessionSpec& s) { s.layers[1].kv_heads = 0; }),
            InvalidArgumentError("layers[1].kv_heads: 0, must be 1..1024"));
  EXPECT_EQ(
      error([](SessionSpec& s) { s.layers[1].query_heads = 5; }),
      InvalidArgumentError("layers[1].query_heads: 5, must be 1..16 times kv_heads, which is 2"));
  EXPECT_EQ(
      error([](SessionSpec& s) { s.layers[0].query_heads = 34; }),
      InvalidArgumentError("layers[0].query_heads: 34, must be 1..16 times kv_heads, which is 2"));
  EXPECT_EQ(error([](SessionSpec& s) { s.layers[0].head_dim = 96; }),
            InvalidArgumentError("layers[0].head_dim: 96, must be 64, 128 or 256"));
  EXPECT_EQ(error([](SessionSpec& s) { s.layers[0].soft_cap = -1; }),
            InvalidArgumentError("layers[0].soft_cap: -1, must be finite and at least 0"));
  EXPECT_EQ(error([](SessionSpec& s) { s.layers[0].sliding_window = -1; }),
            InvalidArgumentError("layers[0].sliding_window: -1, must be 0..2147483647"));
  EXPECT_EQ(error([](SessionSpec& s) { s.time_to_live = absl::ZeroDuration(); }),
            InvalidArgumentError("time_to_live: 0, must be above 0"));
  EXPECT_EQ(error([](SessionSpec& s) { s.calibration = "abc"; }),
            absl::NotFoundError("calibration: abc, unknown"));
  EXPECT_EQ(error([](SessionSpec& s) {
              s.codec = Codec::kRaw;
              s.calibration = "abc";
            }),
            InvalidArgumentError("calibration: abc, must be empty with codec raw"));
  EXPECT_EQ(
      error([](SessionSpec& s) { s.query_second_moments.resize(1); }),
      InvalidArgumentError("query_second_moments: 1 entries, must be none or 2, one a layer"));
  EXPECT_EQ(error([](SessionSpec& s) {
              s.query_second_moments = {{}, {1, 2}};
            }),
            InvalidArgumentError("query_second_moments[1].values: 2 values, must be none or 128 "
                                 "(kv_heads x head_dim)"));
  EXPECT_EQ(
      error([](SessionSpec& s) {
        s.query_second_moments = {std::vector<float>(128, -1), {}};
      }),
      InvalidArgumentError("query_second_moments[0].values[0]: -1, must be finite and at least 0"));
  EXPECT_EQ((*engine_)->session_count(), 1u);
}

TEST_F(EngineErrorsTest, ChunksThatDoNotFitTheSession) {
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.layer = 2; }),
            InvalidArgumentError("chunk.layer: 2, must be 0..1"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.layer = -1; }),
            InvalidArgumentError("chunk.layer: -1, must be 0..1"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.token_count = 0; }),
            InvalidArgumentError("chunk.token_count: 0, must be 1..110"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.token_count = 4294967295; }),
            InvalidArgumentError("chunk.token_count: 4294967295, must be 1..110"));
  EXPECT_EQ(
      AppendError([](TokenChunk& c) { c.k.bytes.remove_suffix(1); }),
      InvalidArgumentError("chunk.k: 1023 bytes, must be 1024 (2 tokens x 128 values x 4 bytes)"));
  EXPECT_EQ(
      AppendError([](TokenChunk& c) { c.v = std::string(); }),
      InvalidArgumentError("chunk.v: 0 bytes, must be 1024 (2 tokens x 128 values x 4 bytes)"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.query_second_moments = {1}; }),
            InvalidArgumentError("query_second_moments.values: 1 values, must be none or 128 "
                                 "(kv_heads x head_dim)"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.position = 101; }),
            OutOfRangeError("chunk.position: 101, expected at most 100, the tokens of layer 0"));
  EXPECT_EQ(AppendError([](TokenChunk& c) { c.position = UINT64_MAX; }).code(),
            absl::StatusCode::kOutOfRange);
}

TEST_F(EngineErrorsTest, TooManyTokens) {
  const ModelTokens many = RandomTokens(random_, kShape, 11);
  EXPECT_EQ(AppendError([&](TokenChunk& c) { c = Chunk(0, 100, kShape, many); }),
            absl::ResourceExhaustedError(
                "tokens_per_session_max: 100 of 110 tokens, the chunk ends at 111"));
}

TEST_F(EngineErrorsTest, ValuesThatAreNotFinite) {
  const std::vector<std::pair<float, std::string>> values = {
      {HUGE_VALF, "inf"}, {-HUGE_VALF, "-inf"}, {std::numeric_limits<float>::quiet_NaN(), "nan"}};
  for (const auto& [value, name] : values) {
    ModelTokens bad = tokens_;
    bad.k[200] = value;
    EXPECT_EQ(
        AppendError([&](TokenChunk& c) { c.k = BytesOf(bad.k); }),
        InvalidArgumentError("chunk.k: " + name + " at index 200 of 256 values, must be finite"));
    bad = tokens_;
    bad.v[0] = value;
    EXPECT_EQ(
        AppendError([&](TokenChunk& c) { c.v = BytesOf(bad.v); }),
        InvalidArgumentError("chunk.v: " + name + " at index 0 of 256 values, must be finite"));
    std::vector<float> q = q_;
    q[3] = value;
    EXPECT_EQ(AttendError([&](AttendQuery& a) { a.q = BytesOf(q); }),
              InvalidArgumentError("items[0].queries.q: " + name +
                                   " at index 3 of 512 values, must be finite"));
    EXPECT_EQ(DecodeError([&](DecodeStep& d) { d.q = BytesOf(q); }),
              InvalidArgumentError("items[0].queries.q: " + name +
                                   " at index 3 of 512 values, must be finite"));
  }
}

TEST_F(EngineErrorsTest, StaleGenerations) {
  const absl::Status stale = absl::AbortedError("generation: 7, the session is at 1");
  EXPECT_EQ((*engine_)->BeginAppend(engine_->caller(), session_.id, 7).status(), stale);
  EXPECT_EQ(DecodeError([](DecodeStep& d) { d.generation = 7; }),
            absl::AbortedError("items[0].generation: 7, the session is at 1"));
  SessionInfo other = session_;
  other.generation = 7;
  EXPECT_EQ(engine_->Truncate(other, 0).status(), stale);
  EXPECT_EQ(engine_->Seal(other).status(), stale);
}

TEST_F(EngineErrorsTest, UnknownSessions) {
  const absl::Status unknown = absl::NotFoundError("session_id: x, unknown");
  const absl::Status in_item = absl::NotFoundError("items[0].session_id: x, unknown");
  SessionInfo other = session_;
  other.id = "x";
  EXPECT_EQ((*engine_)->GetSession(engine_->caller(), "x", "").status(), unknown);
  EXPECT_EQ((*engine_)->TouchSession(engine_->caller(), "x").status(), unknown);
  EXPECT_EQ((*engine_)->DeleteSession(engine_->caller(), "x"), unknown);
  EXPECT_EQ((*engine_)->BeginAppend(engine_->caller(), "x", 1).status(), unknown);
  EXPECT_EQ(engine_->Fetch("x", 0, 0, 0).status(), unknown);
  EXPECT_EQ(engine_->Truncate(other, 0).status(), unknown);
  EXPECT_EQ(engine_->Seal(other).status(), unknown);
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.session_id = "x"; }), in_item);
  EXPECT_EQ(DecodeError([](DecodeStep& d) { d.session_id = "x"; }), in_item);
}

TEST_F(EngineErrorsTest, QueriesThatDoNotFitTheSession) {
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.query_tokens = 0; }),
            InvalidArgumentError("items[0].queries.token_count: 0, must be 1..32"));
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.query_tokens = 33; }),
            InvalidArgumentError("items[0].queries.token_count: 33, must be 1..32"));
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.query_tokens = 3; }),
            InvalidArgumentError("items[0].queries.q: 2048 bytes, must be 3072 (3 tokens x 256 "
                                 "values x 4 bytes)"));
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.token_count = 101; }),
            OutOfRangeError("items[0].token_count: 101, the layer has 100"));
  EXPECT_EQ(AttendError([](AttendQuery& a) { a.token_count = 1; }),
            InvalidArgumentError(
                "items[0].queries.token_count: 2, must be at most token_count, which is 1"));
}

TEST_F(EngineErrorsTest, BatchesThatMakeNoSense) {
  const AttendQuery query = Query(session_.id, kShape, q_);
  EXPECT_EQ(engine_->Attend(0, {}).status(), InvalidArgumentError("items: 0, must be 1..2"));
  EXPECT_EQ(engine_->Attend(0, {query, query, query}).status(),
            InvalidArgumentError("items: 3, must be 1..2"));
  EXPECT_EQ(engine_->Attend(2, {query}).status(),
            InvalidArgumentError("layer: 2, must be 0..1 in the session of items[0]"));
  Pending<std::vector<AttendResult>> pending;
  (*engine_)->Attend(engine_->caller(), 0, HUGE_VALF, {query}, pending.done());
  EXPECT_EQ(pending.Wait().status(), InvalidArgumentError("scale: inf, must be finite"));

  const DecodeStep step = Step(session_, 0, 100, kShape, tokens_, q_);
  EXPECT_EQ(
      engine_->Decode(0, {step, step}).status(),
      InvalidArgumentError("items[1].session_id: " + session_.id + ", must not be named twice"));
  EXPECT_EQ(engine_->Decode(1, {step}).status(),
            InvalidArgumentError("items[0].chunk.layer: 0, must be the message's, which is 1"));
  EXPECT_EQ(DecodeError([](DecodeStep& d) { d.query_tokens = 1; }),
            InvalidArgumentError(
                "items[0].queries.token_count: 1, must be chunk.token_count, which is 2"));
  EXPECT_EQ(
      DecodeError([](DecodeStep& d) { d.chunk.position = 102; }),
      OutOfRangeError("items[0].chunk.position: 102, expected at most 100, the tokens of layer 0"));
}

TEST_F(EngineErrorsTest, RangesPastTheTokens) {
  EXPECT_EQ(engine_->Fetch(session_.id, 2, 0, 0).status(),
            InvalidArgumentError("layer: 2, must be 0..1"));
  EXPECT_EQ(engine_->Fetch(session_.id, 0, 100, 0).status(),
            OutOfRangeError("position: 100, must be below 100, the tokens of layer 0"));
  EXPECT_EQ(engine_->Fetch(session_.id, 0, 60, 41).status(),
            OutOfRangeError("token_count: 41, must be at most 40 from position 60 on"));
  EXPECT_EQ(engine_->Fetch(session_.id, 0, 60, UINT64_MAX).status().code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(engine_->Truncate(session_, 91).status(),
            OutOfRangeError("token_count: 91, must be at most the committed count, which is 90"));
}

TEST_F(EngineErrorsTest, OneMutationAtATime) {
  auto addition = (*engine_)->BeginAppend(engine_->caller(), session_.id, 1);
  ASSERT_TRUE(addition.ok());
  const absl::Status busy = absl::UnavailableError("session_id: " + session_.id +
                                                   ", another mutation of it is in flight");
  EXPECT_EQ((*engine_)->BeginAppend(engine_->caller(), session_.id, 1).status(), busy);
  EXPECT_EQ(DecodeError([](DecodeStep&) {}), busy);
  EXPECT_EQ(engine_->Truncate(session_, 0).status(), busy);
  EXPECT_EQ(engine_->Seal(session_).status(), busy);
  // Readers are no mutation.
  EXPECT_TRUE(engine_->Fetch(session_.id, 0, 0, 0).ok());
}

TEST_F(EngineErrorsTest, NobodyWaitsAnyMore) {
  engine_->caller().cancelled = [] { return true; };
  const absl::Status cancelled = absl::CancelledError("cancelled by the caller");
  EXPECT_EQ(AppendError([](TokenChunk&) {}), cancelled);
  EXPECT_EQ(AttendError([](AttendQuery&) {}), cancelled);
  EXPECT_EQ(DecodeError([](DecodeStep&) {}), cancelled);
  EXPECT_EQ(engine_->Fetch(session_.id, 0, 0, 0).status(), cancelled);
  EXPECT_EQ(engine_->Truncate(session_, 0).status(), cancelled);
  EXPECT_EQ(engine_->Seal(session_).status(), cancelled);

  engine_->caller().cancelled = nullptr;
  engine_->caller().deadline = engine_->clock().Now();
  const absl::Status late = absl::DeadlineExceededError("the deadline has passed");
  EXPECT_EQ(AppendError([](TokenChunk&) {}), late);
  EXPECT_EQ(AttendError([](AttendQuery&) {}), late);
  EXPECT_EQ(DecodeError([](DecodeStep&) {}), late);
  EXPECT_EQ(engine_->Truncate(session_, 0).status(), late);
  EXPECT_EQ(engine_->counts().failed_operations, 10);
}

TEST_F(EngineErrorsTest, AReaderMayStopBetweenItsPieces) {
  EngineOptions options;
  options.work_piece_row_tokens = 1;
  TestEngine engine(options);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random_, kShape, 10)}).ok());
  int asked = 0;
  engine.caller().cancelled = [&asked] { return ++asked == 3; };
  const std::vector<float> q = RandomQueries(random_, kShape, 10);
  EXPECT_EQ(engine.Attend(0, {Query(session.id, kShape, q)}).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 3);
}

TEST_F(EngineErrorsTest, AFullQueueIsAnError) {
  Mutex mu;
  CondVar changed;
  bool open = false;
  bool reached = false;
  Caller holding = engine_->caller();
  holding.cancelled = [&] {
    MutexLock lock(mu);
    reached = true;
    changed.NotifyAll();
    while (!open) changed.Wait(mu);
    return false;
  };
  Pending<FetchedTokens> held;
  (*engine_)->Fetch(holding, {session_.id, 0, 0, 0, DType::kFp32}, held.done());
  {
    MutexLock lock(mu);
    while (!reached) changed.Wait(mu);
  }
  Pending<FetchedTokens> waiting;
  (*engine_)->Fetch(engine_->caller(), {session_.id, 0, 0, 0, DType::kFp32}, waiting.done());
  EXPECT_EQ(
      engine_->Fetch(session_.id, 0, 0, 0).status(),
      absl::ResourceExhaustedError("queued_requests_per_tenant_max: 2 of 2 requests are waiting"));
  {
    MutexLock lock(mu);
    open = true;
    changed.NotifyAll();
  }
  EXPECT_TRUE(held.Wait().ok());
  EXPECT_TRUE(waiting.Wait().ok());
}

TEST_F(EngineErrorsTest, WhatIsStillQueuedAtTheEndIsToldSo) {
  TestEngine engine;
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random_, kShape, 10)}).ok());
  Pending<FetchedTokens> first;
  Pending<FetchedTokens> second;
  engine->Fetch(engine.caller(), {session.id, 0, 0, 0, DType::kFp32}, first.done());
  engine->Fetch(engine.caller(), {session.id, 0, 0, 0, DType::kFp32}, second.done());
  engine.Stop();
  // Either it was done before the end or it was refused; it has its result either way.
  for (Pending<FetchedTokens>* pending : {&first, &second}) {
    const absl::Status status = pending->Wait().status();
    EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kUnavailable) << status;
  }
}

TEST_F(EngineErrorsTest, AfterTheDeviceFailedNothingIsAnswered) {
  const absl::Status broken = absl::InternalError("cuda: it broke");
  std::atomic<bool> failed{false};
  TestEngine engine({}, std::make_unique<FailingBackend>(&failed));
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random_, kShape, 10)}).ok());
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  ASSERT_TRUE(addition.ok());
  failed = true;
  EXPECT_EQ(engine.AppendChunk(**addition, Chunk(0, 10, kShape, tokens_)).status(), broken);
  EXPECT_EQ(engine.Finish(**addition).status(), broken);
  EXPECT_EQ(engine.Attend(0, {Query(session.id, kShape, q_)}).status(), broken);
  EXPECT_EQ(engine.Fetch(session.id, 0, 0, 0).status(), broken);
  EXPECT_EQ(engine.Decode(0, {Step(session, 0, 10, kShape, tokens_, q_)}).status(), broken);
  EXPECT_EQ(engine.Seal(session).status(), broken);
  EXPECT_EQ(engine.Truncate(session, 1).status(), broken);
  EXPECT_EQ(engine.Create(Spec("t", Codec::kRaw, kShape)).status(), broken);
}

}  // namespace
}  // namespace kvdepot
