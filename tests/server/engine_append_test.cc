// What is stored and what is sealed, seen through Fetch.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {2, 4, 64, 0, 0};

// `tokens` cut at random.
std::vector<ModelTokens> Cut(std::mt19937& random, const LayerModel& tokens, uint64_t chunk_max) {
  std::vector<ModelTokens> chunks;
  for (uint64_t position = 0; position < tokens.token_count();) {
    const uint64_t count =
        std::min<uint64_t>(1 + random() % chunk_max, tokens.token_count() - position);
    chunks.push_back(tokens.Slice(position, count));
    position += count;
  }
  return chunks;
}

LayerModel RandomModel(std::mt19937& random, const LayerShape& shape, uint64_t token_count) {
  LayerModel model(shape);
  model.Append(0, RandomTokens(random, shape, token_count));
  return model;
}

TEST(EngineAppendTest, RawTokensComeBackAsTheyWere) {
  TestEngine engine;
  std::mt19937 random(1);
  const LayerModel model = RandomModel(random, kShape, 2500);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  const auto state = engine.Append(session, 0, 0, Cut(random, model, 700));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->token_count, 2500u);
  EXPECT_EQ(state->sealed_end, 16 + 1024 + 1024 + 320u);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), model.Slice(0, 2500)));
  EXPECT_EQ(engine.counts().raw_segments, 3);
  EXPECT_EQ(engine.counts().appended, 2500u);
  engine->CheckInvariants();
}

TEST(EngineAppendTest, SinksAndTailOfPlanesAreExactAndTheRestIsClose) {
  TestEngine engine;
  std::mt19937 random(2);
  const LayerModel model = RandomModel(random, kShape, 1500);
  SessionSpec spec = Spec("s", Codec::kPlanes, kShape);
  spec.profile = Profile::kFine;
  const SessionInfo session = *engine.Create(spec);
  const LayerState state = *engine.Append(session, 0, 0, {model.Slice(0, 1500)});
  const LayerModel stored = [&] {
    LayerModel layer(kShape);
    layer.Append(0, engine.FetchAll(session.id, 0));
    return layer;
  }();
  ASSERT_EQ(stored.token_count(), 1500u);
  EXPECT_TRUE(SameTokens(stored.Slice(0, 16), model.Slice(0, 16)));
  const uint64_t tail = 1500 - state.sealed_end;
  EXPECT_TRUE(
      SameTokens(stored.Slice(state.sealed_end, tail), model.Slice(state.sealed_end, tail)));
  EXPECT_FALSE(SameTokens(stored.Slice(16, 1024), model.Slice(16, 1024)));
  const ModelTokens exact = model.Slice(0, 1500);
  const ModelTokens decoded = stored.Slice(0, 1500);
  for (size_t i = 0; i < exact.k.size(); ++i) ASSERT_NEAR(decoded.k[i], exact.k[i], 3);
  EXPECT_LT(engine.Get(session.id).stored_bytes, engine.Get(session.id).logical_bytes / 4);
}

TEST(EngineAppendTest, HowAPromptIsChunkedDoesNotMatter) {
  TestEngine engine;
  std::mt19937 random(3);
  const LayerModel model = RandomModel(random, kShape, 3000);
  const SessionInfo whole = *engine.Create(Spec("whole", Codec::kPlanes, kShape));
  const LayerState expected = *engine.Append(whole, 0, 0, {model.Slice(0, 3000)});
  const ModelTokens tokens = engine.FetchAll(whole.id, 0);
  for (const uint64_t chunk_max : {200u, 1100u}) {
    const SessionInfo cut =
        *engine.Create(Spec("cut" + std::to_string(chunk_max), Codec::kPlanes, kShape));
    const LayerState state = *engine.Append(cut, 0, 0, Cut(random, model, chunk_max));
    EXPECT_EQ(state.sealed_end, expected.sealed_end);
    EXPECT_TRUE(SameTokens(engine.FetchAll(cut.id, 0), tokens));
    EXPECT_EQ(engine.Get(cut.id).stored_bytes, engine.Get(whole.id).stored_bytes);
  }
}

TEST(EngineAppendTest, AStreamedPromptIsSealedOnItsWay) {
  TestEngine engine;
  std::mt19937 random(4);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape));
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  for (uint64_t position = 0; position < 8192; position += 512) {
    const ModelTokens tokens = RandomTokens(random, kShape, 512);
    const LayerState state = *engine.AppendChunk(**addition, Chunk(0, position, kShape, tokens));
    // A window, less than a segment, and no more.
    EXPECT_LT(state.token_count - state.sealed_end, 64 + 1024 + 16u);
  }
  EXPECT_TRUE(engine.Finish(**addition).ok());
}

TEST(EngineAppendTest, OfAnOverlapOnlyTheNewSuffixIsStored) {
  TestEngine engine;
  std::mt19937 random(5);
  LayerModel model(kShape);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  for (const auto& [position, count] :
       {std::pair(0, 100), std::pair(50, 100), std::pair(0, 10), std::pair(149, 2)}) {
    const ModelTokens tokens = RandomTokens(random, kShape, static_cast<uint64_t>(count));
    model.Append(static_cast<uint64_t>(position), tokens);
    const LayerState state = *engine.Append(session, 0, static_cast<uint64_t>(position), {tokens});
    EXPECT_EQ(state.token_count, model.token_count());
  }
  EXPECT_EQ(engine.counts().appended, 151u);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), model.Slice(0, 151)));
}

TEST(EngineAppendTest, TokensThatWereThereDoNotMakeAPrompt) {
  TestEngine engine;
  std::mt19937 random(6);
  const ModelTokens tokens = RandomTokens(random, kShape, 300);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  const LayerModel model = [&] {
    LayerModel layer(kShape);
    layer.Append(0, tokens);
    return layer;
  }();
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 200)}).ok());
  EXPECT_EQ(engine.Append(session, 0, 0, {tokens})->sealed_end, 0u);
}

TEST(EngineAppendTest, AnAdditionThatNobodyFinishedIsSealedWithTheNext) {
  TestEngine engine;
  std::mt19937 random(7);
  const LayerModel model = RandomModel(random, kShape, 1001);
  const SessionInfo finished = *engine.Create(Spec("finished", Codec::kPlanes, kShape));
  const SessionInfo left = *engine.Create(Spec("left", Codec::kPlanes, kShape));
  ASSERT_TRUE(engine.Append(finished, 0, 0, {model.Slice(0, 1000)}).ok());
  {
    const ModelTokens tokens = model.Slice(0, 1000);
    auto addition = engine->BeginAppend(engine.caller(), left.id, 1);
    ASSERT_TRUE(engine.AppendChunk(**addition, Chunk(0, 0, kShape, tokens)).ok());
  }
  EXPECT_EQ(engine.Get(left.id).layers[0].sealed_end, 0u);
  for (const SessionInfo& session : {finished, left}) {
    EXPECT_EQ(engine.Append(session, 0, 1000, {model.Slice(1000, 1)})->sealed_end, 16 + 896u);
  }
  EXPECT_TRUE(SameTokens(engine.FetchAll(finished.id, 0), engine.FetchAll(left.id, 0)));
  engine->CheckInvariants();
}

TEST(EngineAppendTest, ValuesBeyondPlanesAreSealedAsRaw) {
  TestEngine engine;
  std::mt19937 random(8);
  ModelTokens tokens = RandomTokens(random, kShape, 500);
  for (float& value : tokens.v) value *= 1e30f;
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {tokens}).ok());
  EXPECT_EQ(engine.counts().raw_segments, 1);
  EXPECT_EQ(engine.counts().planes_segments, 0);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), tokens));
  engine->CheckInvariants();
}

TEST(EngineAppendTest, EveryIntervalthSegmentIsCompared) {
  EngineOptions options;
  options.error_sample_interval = 2;
  TestEngine engine(options);
  std::mt19937 random(9);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape));
  ASSERT_TRUE(
      engine.Append(session, 0, 0, {RandomTokens(random, kShape, 16 + 5 * 1024 + 64)}).ok());
  const auto counts = engine.counts();
  EXPECT_EQ(counts.planes_segments, 5);
  ASSERT_EQ(counts.errors.size(), 3u);
  for (const auto& [k, v] : counts.errors) {
    // At 2 bits a value: sqrt(.1188), with K a step better and V a step worse.
    EXPECT_GT(k, 0.1);
    EXPECT_LT(k, v);
    EXPECT_LT(v, 0.6);
  }
}

// Second moments decide which channels get the bits.
TEST(EngineAppendTest, QuerySecondMomentsCountUntilTheFirstSeal) {
  TestEngine engine;
  std::mt19937 random(10);
  const LayerModel model = RandomModel(random, kShape, 800);
  std::vector<float> moments(kShape.row_values());
  std::iota(moments.begin(), moments.end(), 1.f);
  const auto store = [&](const std::string& name, bool at_creation, int chunk_with_moments) {
    SessionSpec spec = Spec(name, Codec::kPlanes, kShape);
    if (at_creation) spec.query_second_moments = {moments};
    const SessionInfo session = *engine.Create(spec);
    for (int i = 0; i < 2; ++i) {
      const ModelTokens tokens = model.Slice(static_cast<uint64_t>(i) * 400, 400);
      TokenChunk chunk = Chunk(0, static_cast<uint64_t>(i) * 400, kShape, tokens);
      if (i == chunk_with_moments) chunk.query_second_moments = moments;
      auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
      EXPECT_TRUE(engine.AppendChunk(**addition, chunk).ok());
      EXPECT_TRUE(engine.Finish(**addition).ok());
    }
    return engine.FetchAll(session.id, 0);
  };
  const ModelTokens unknown = store("unknown", false, -1);
  const ModelTokens at_creation = store("at creation", true, -1);
  EXPECT_FALSE(SameTokens(unknown, at_creation));
  EXPECT_TRUE(SameTokens(store("with the first chunk", false, 0), at_creation));
  EXPECT_TRUE(SameTokens(store("too late", false, 1), unknown));
}

TEST(EngineAppendTest, ANamedCalibrationIsUsed) {
  TestEngine engine;
  std::mt19937 random(11);
  Calibration calibration;
  calibration.hash = std::string(64, 'c');
  TensorCalibration tensor;
  tensor.channel_order.resize(64);
  std::iota(tensor.channel_order.begin(), tensor.channel_order.end(), uint8_t{0});
  tensor.patterns = {7, 7, 7, 7};  // 4 bits everywhere.
  calibration.layers = {{{tensor, tensor}, {tensor, tensor}}};
  ASSERT_TRUE(engine.calibrations().AddShared(calibration).ok());
  SessionSpec spec = Spec("s", Codec::kPlanes, kShape);
  spec.calibration = calibration.hash;
  const SessionInfo session = *engine.Create(spec);
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 16 + 256 + 64)}).ok());
  // Sinks, one block, and a segment: header, and for each head two tables and four records.
  EXPECT_EQ(engine.Get(session.id).stored_bytes,
            80 * kShape.row_values() * 2 * 4 + 128 + 2 * (8 * 64 + 4 * (128 + 8 * 64 * 8)));
}

TEST(EngineAppendTest, SealingASessionLeavesItsWindow) {
  TestEngine engine;
  std::mt19937 random(12);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape, 2));
  for (int layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(engine.Append(session, layer, 0, {RandomTokens(random, kShape, 250)}).ok());
  }
  EXPECT_EQ(engine.Get(session.id).layers[0].sealed_end, 0u);
  const absl::StatusOr<SessionInfo> sealed = engine.Seal(session);
  ASSERT_TRUE(sealed.ok());
  for (const LayerState& layer : sealed->layers) EXPECT_EQ(layer.sealed_end, 16 + 128u);
  EXPECT_EQ(sealed->generation, session.generation);
  EXPECT_EQ(engine.Seal(session)->layers[1].sealed_end, 16 + 128u);
}

TEST(EngineAppendTest, FinishNamesTheLayersOfTheCall) {
  TestEngine engine;
  std::mt19937 random(13);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape, 3));
  const ModelTokens tokens = RandomTokens(random, kShape, 300);
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  for (const int layer : {2, 0, 2}) {
    ASSERT_TRUE(engine.AppendChunk(**addition, Chunk(layer, 0, kShape, tokens)).ok());
  }
  const auto states = engine.Finish(**addition);
  ASSERT_TRUE(states.ok());
  ASSERT_EQ(states->size(), 2u);
  EXPECT_EQ((*states)[0].first, 0);
  EXPECT_EQ((*states)[1].first, 2);
  EXPECT_EQ((*states)[1].second.token_count, 300u);
  EXPECT_EQ((*states)[1].second.sealed_end, 16 + 192u);
  EXPECT_EQ(engine.Get(session.id).committed_token_count, 0u);
}

TEST(EngineAppendTest, AFetchIsCutToItsSize) {
  EngineOptions options;
  options.fetch_bytes_max = 10 * 2 * kShape.row_values() * 4;
  TestEngine engine(options);
  std::mt19937 random(14);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  const LayerModel model = RandomModel(random, kShape, 25);
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 25)}).ok());
  const absl::StatusOr<FetchedTokens> fetched = engine.Fetch(session.id, 0, 3, 21);
  ASSERT_TRUE(fetched.ok());
  EXPECT_EQ(fetched->position, 3u);
  EXPECT_EQ(fetched->token_count, 10u);
  EXPECT_EQ(fetched->remaining_tokens, 11u);
  EXPECT_EQ(FloatsOf(fetched->k), model.Slice(3, 10).k);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), model.Slice(0, 25)));
}

}  // namespace
}  // namespace kvdepot
