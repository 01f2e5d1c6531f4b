// Attention through Attend and Decode against a model in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tests/gpu/forwarding_backend.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {2, 4, 64, 0, 0};
constexpr double kBound = 1e-4;

TEST(EngineDecodeTest, DecodingAttendsOverWhatItAppended) {
  TestEngine engine;
  std::mt19937 random(1);
  LayerShape shape = kShape;
  shape.soft_cap = 20;
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, shape));
  LayerModel model(shape);
  while (model.token_count() < 900) {
    const uint64_t position = model.token_count();
    const uint64_t count = 1 + random() % 20;
    const ModelTokens tokens = RandomTokens(random, shape, count);
    const std::vector<float> q = RandomQueries(random, shape, count);
    model.Append(position, tokens);
    const auto results = engine.Decode(0, {Step(session, 0, position, shape, tokens, q)});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_EQ((*results)[0].token_count, model.token_count());
    EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, position)), kBound);
  }
  EXPECT_EQ(engine.Get(session.id).layers[0].sealed_end, 16 + 3 * 256u);
  engine->CheckInvariants();
}

TEST(EngineDecodeTest, ARepeatedStepRepeatsItsResult) {
  TestEngine engine;
  std::mt19937 random(2);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 600)}).ok());
  const ModelTokens tokens = RandomTokens(random, kShape, 3);
  const std::vector<float> q = RandomQueries(random, kShape, 3);
  const DecodeStep step = Step(session, 0, 600, kShape, tokens, q);
  const auto first = engine.Decode(0, {step});
  const auto second = engine.Decode(0, {step});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ((*first)[0].output, (*second)[0].output);
  EXPECT_EQ((*first)[0].log_sum_exp, (*second)[0].log_sum_exp);
  EXPECT_EQ((*second)[0].token_count, 603u);
}

TEST(EngineDecodeTest, ABatchTakesSessionsOfDifferentLengths) {
  TestEngine engine;
  std::mt19937 random(3);
  std::vector<LayerModel> models;
  std::vector<std::vector<float>> q;
  std::vector<AttendQuery> queries;
  for (const uint64_t length : {1u, 15u, 700u, 64u}) {
    const SessionInfo session = *engine.Create(Spec(std::to_string(length), Codec::kRaw, kShape));
    models.emplace_back(kShape);
    models.back().Append(0, RandomTokens(random, kShape, length));
    ASSERT_TRUE(engine.Append(session, 0, 0, {models.back().Slice(0, length)}).ok());
    q.push_back(RandomQueries(random, kShape, std::min<uint64_t>(length, 5)));
    queries.push_back(Query(session.id, kShape, q.back()));
  }
  const auto results = engine.Attend(0, queries);
  ASSERT_TRUE(results.ok()) << results.status();
  for (size_t i = 0; i < models.size(); ++i) {
    const uint64_t position = models[i].token_count() - queries[i].query_tokens;
    EXPECT_LT(LargestError((*results)[i].output, models[i].Attend(q[i], position)), kBound);
    EXPECT_EQ((*results)[i].token_count, models[i].token_count());
  }
}

TEST(EngineDecodeTest, HowManyPiecesItTakesDoesNotChangeAnAttend) {
  for (const uint64_t row_tokens : {uint64_t{1}, uint64_t{3000}, uint64_t{1} << 24}) {
    EngineOptions options;
    options.work_piece_row_tokens = row_tokens;
    TestEngine engine(options);
    std::mt19937 random(4);
    LayerModel model(kShape);
    model.Append(0, RandomTokens(random, kShape, 500));
    const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
    ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 500)}).ok());
    const std::vector<float> q = RandomQueries(random, kShape, 40);
    const auto results = engine.Attend(0, {Query(session.id, kShape, q)});
    ASSERT_TRUE(results.ok());
    EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, 460)), kBound);
  }
}

TEST(EngineDecodeTest, ReadersSeeWhatEveryLayerHasUnlessTheyAsk) {
  TestEngine engine;
  std::mt19937 random(5);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape, 2));
  LayerModel model(kShape);
  model.Append(0, RandomTokens(random, kShape, 90));
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 90)}).ok());
  ASSERT_TRUE(engine.Append(session, 1, 0, {model.Slice(0, 70)}).ok());
  const std::vector<float> q = RandomQueries(random, kShape, 1);
  const auto committed = engine.Attend(0, {Query(session.id, kShape, q)});
  const auto newest = engine.Attend(0, {Query(session.id, kShape, q, 90)});
  ASSERT_TRUE(committed.ok() && newest.ok());
  EXPECT_EQ((*committed)[0].token_count, 70u);
  EXPECT_LT(LargestError((*committed)[0].output, model.Attend(q, 69)), kBound);
  EXPECT_EQ((*newest)[0].token_count, 90u);
  EXPECT_LT(LargestError((*newest)[0].output, model.Attend(q, 89)), kBound);
}

TEST(EngineDecodeTest, AllStepsOrNone) {
  TestEngine engine;
  std::mt19937 random(6);
  const SessionInfo good = *engine.Create(Spec("good", Codec::kRaw, kShape));
  const SessionInfo bad = *engine.Create(Spec("bad", Codec::kRaw, kShape));
  const ModelTokens tokens = RandomTokens(random, kShape, 2);
  ModelTokens infinite = tokens;
  infinite.v[130] = HUGE_VALF;
  const std::vector<float> q = RandomQueries(random, kShape, 2);
  const auto results =
      engine.Decode(0, {Step(good, 0, 0, kShape, tokens, q), Step(bad, 0, 0, kShape, infinite, q)});
  EXPECT_EQ(results.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(results.status().message().substr(0, 18), "items[1].chunk.v: ");
  EXPECT_EQ(engine.Get(good.id).committed_token_count, 0u);
  EXPECT_EQ(engine->used_bytes(), 0u);
  // Both sessions are free again.
  EXPECT_TRUE(
      engine.Decode(0, {Step(good, 0, 0, kShape, tokens, q), Step(bad, 0, 0, kShape, tokens, q)})
          .ok());
}

TEST(EngineDecodeTest, AfterATruncationOnlyWhatWasKeptIsSeen) {
  TestEngine engine;
  std::mt19937 random(7);
  SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  LayerModel model(kShape);
  // Inside a segment, inside the tail, at an extent's end, inside the sinks, to nothing.
  for (const uint64_t kept : {700u, 690u, 600u, 1040u, 1033u, 16u, 9u, 0u}) {
    const uint64_t position = model.token_count();
    const ModelTokens tokens = RandomTokens(random, kShape, 1300 - position);
    model.Append(position, tokens);
    ASSERT_TRUE(engine.Append(session, 0, position, {tokens}).ok());
    const absl::StatusOr<SessionInfo> truncated = engine.Truncate(session, kept);
    ASSERT_TRUE(truncated.ok()) << truncated.status();
    EXPECT_EQ(truncated->generation, session.generation + 1);
    EXPECT_EQ(truncated->committed_token_count, kept);
    engine->CheckInvariants();
    session = *truncated;
    model.Truncate(kept);
    const ModelTokens next = RandomTokens(random, kShape, 2);
    const std::vector<float> q = RandomQueries(random, kShape, 2);
    model.Append(kept, next);
    const auto results = engine.Decode(0, {Step(session, 0, kept, kShape, next, q)});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, kept)), kBound);
    engine->CheckInvariants();
  }
}

TEST(EngineDecodeTest, ATruncationCutsEveryLayerToItsCount) {
  TestEngine engine;
  std::mt19937 random(8);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape, 2));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 90)}).ok());
  ASSERT_TRUE(engine.Append(session, 1, 0, {RandomTokens(random, kShape, 70)}).ok());
  const SessionInfo truncated = *engine.Truncate(session, 70);
  EXPECT_EQ(truncated.layers[0].token_count, 70u);
  EXPECT_EQ(truncated.layers[1].token_count, 70u);
}

// The worker is held inside the first request's `cancelled`, so that what follows is queued in this
// order.
TEST(EngineDecodeTest, AReaderSeesTheSessionAsItWasWhenItAsked) {
  TestEngine engine;
  std::mt19937 random(9);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  LayerModel model(kShape);
  model.Append(0, RandomTokens(random, kShape, 130));
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 130)}).ok());

  Mutex mu;
  CondVar changed;
  bool open = false;
  Caller holding = engine.caller();
  holding.cancelled = [&] {
    MutexLock lock(mu);
    while (!open) changed.Wait(mu);
    return false;
  };
  Pending<FetchedTokens> held;
  engine->Fetch(holding, {session.id, 0, 0, 1, DType::kFp32}, held.done());
  const Caller caller = engine.caller();
  Pending<SessionInfo> truncated;
  engine->TruncateSession(caller, session.id, 1, 100, truncated.done());
  // The truncation runs before this reader does, but after it has asked.
  const std::vector<float> q = RandomQueries(random, kShape, 20);
  Pending<std::vector<AttendResult>> read;
  engine->Attend(caller, 0, 0, {Query(session.id, kShape, q)}, read.done());
  Pending<FetchedTokens> fetched;
  engine->Fetch(caller, {session.id, 0, 90, 40, DType::kFp32}, fetched.done());
  {
    MutexLock lock(mu);
    open = true;
    changed.NotifyAll();
  }
  EXPECT_TRUE(held.Wait().ok());
  EXPECT_EQ(truncated.Wait()->committed_token_count, 100u);
  const auto results = read.Wait();
  ASSERT_TRUE(results.ok());
  EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, 110)), kBound);
  EXPECT_EQ(FloatsOf(fetched.Wait()->k), model.Slice(90, 40).k);
  engine->CheckInvariants();
}

TEST(EngineDecodeTest, ADeletedSessionServesWhoAskedBefore) {
  TestEngine engine;
  std::mt19937 random(10);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  LayerModel model(kShape);
  model.Append(0, RandomTokens(random, kShape, 130));
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 130)}).ok());
  Caller deleting = engine.caller();
  bool deleted = false;
  deleting.cancelled = [&] {
    if (!deleted) deleted = engine->DeleteSession(engine.caller(), session.id).ok();
    return false;
  };
  const std::vector<float> q = RandomQueries(random, kShape, 3);
  Pending<std::vector<AttendResult>> read;
  engine->Attend(deleting, 0, 0, {Query(session.id, kShape, q)}, read.done());
  const auto results = read.Wait();
  ASSERT_TRUE(results.ok());
  EXPECT_TRUE(deleted);
  EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, 127)), kBound);
  EXPECT_EQ(engine->used_bytes(), 0u);
}

// `tokens` with every value replaced.
ModelTokens Constant(ModelTokens tokens, float value) {
  std::fill(tokens.k.begin(), tokens.k.end(), value);
  return tokens;
}

// One token of `position` has keys so large that their products with q = 1e30 leave fp32: upwards,
// or to infinity minus infinity.
TEST(EngineDecodeTest, ALogitBeyondFp32IsRefusedWhereverItIs) {
  for (const Codec codec : {Codec::kRaw, Codec::kPlanes}) {
    for (const bool signs_differ : {false, true}) {
      // In a part of its own, beside finite ones, sealed and not.
      for (const uint64_t position : {0u, 70u, 5000u, 5999u}) {
        TestEngine engine;
        std::mt19937 random(11);
        const SessionInfo session = *engine.Create(Spec("s", codec, kShape));
        ModelTokens tokens = RandomTokens(random, kShape, 6000);
        const auto at = tokens.k.begin() + static_cast<ptrdiff_t>(position * kShape.row_values());
        std::fill(at, at + static_cast<ptrdiff_t>(kShape.row_values()), 1e30f);
        if (signs_differ) *at = -1e30f;
        ASSERT_TRUE(engine.Append(session, 0, 0, {tokens}).ok());
        const std::vector<float> fine = RandomQueries(random, kShape, 1);
        EXPECT_TRUE(engine.Attend(0, {Query(session.id, kShape, fine)}).ok());
        const std::vector<float> huge(fine.size(), 1e30f);
        EXPECT_EQ(
            engine.Attend(0, {Query(session.id, kShape, fine), Query(session.id, kShape, huge)})
                .status(),
            absl::InvalidArgumentError(
                "items[1].queries.q: row 0 (query token 0, head 0) has a logit beyond fp32, "
                "scale * q.k must be finite for every visible token"))
            << position << signs_differ;
      }
    }
  }
}

TEST(EngineDecodeTest, ADecodeWithALogitBeyondFp32SaysThatItsTokensAreStored) {
  TestEngine engine;
  std::mt19937 random(12);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  const ModelTokens tokens = Constant(RandomTokens(random, kShape, 2), 1e30f);
  std::vector<float> q = RandomQueries(random, kShape, 2);
  std::fill(q.begin() + 5 * 64, q.begin() + 6 * 64, 1e30f);
  const DecodeStep step = Step(session, 0, 0, kShape, tokens, q);
  EXPECT_EQ(
      engine.Decode(0, {step}).status(),
      absl::InvalidArgumentError(
          "items[0].queries.q: row 5 (query token 1, head 1) has a logit beyond fp32, scale * "
          "q.k must be finite for every visible token; the tokens are stored"));
  EXPECT_EQ(engine.Get(session.id).layers[0].token_count, 2u);
  engine->CheckInvariants();
  EXPECT_TRUE(engine.Truncate(engine.Get(session.id), 0).ok());
}

// Has no memory to attend while told so.
class NoMemoryToAttend final : public ForwardingBackend {
 public:
  explicit NoMemoryToAttend(const bool* exhausted)
      : ForwardingBackend(MakeCpuBackend(1)), exhausted_(exhausted) {}
  absl::Status Attend(absl::Span<const AttendItem> items) override {
    if (*exhausted_) return absl::ResourceExhaustedError("device_memory: 0 bytes left, 64 needed");
    return ForwardingBackend::Attend(items);
  }

 private:
  const bool* const exhausted_;
};

TEST(EngineDecodeTest, ADecodeWithoutMemoryToAttendKeepsItsTokensAndMayBeRepeated) {
  bool exhausted = true;
  TestEngine engine({}, std::make_unique<NoMemoryToAttend>(&exhausted));
  std::mt19937 random(13);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  LayerModel model(kShape);
  const ModelTokens tokens = RandomTokens(random, kShape, 3);
  model.Append(0, tokens);
  const std::vector<float> q = RandomQueries(random, kShape, 3);
  const DecodeStep step = Step(session, 0, 0, kShape, tokens, q);
  EXPECT_EQ(engine.Decode(0, {step}).status(),
            absl::ResourceExhaustedError(
                "device_memory: 0 bytes left, 64 needed; the tokens are stored"));
  EXPECT_EQ(engine.Get(session.id).layers[0].token_count, 3u);
  engine->CheckInvariants();
  exhausted = false;
  const auto results = engine.Decode(0, {step});
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, 0)), kBound);
  EXPECT_EQ(engine.Get(session.id).layers[0].token_count, 3u);
}

}  // namespace
}  // namespace kvdepot
