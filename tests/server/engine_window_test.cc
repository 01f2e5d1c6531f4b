// Layers with a sliding window: what left it is freed, and never silently missed.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "absl/status/status.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kWindowed = {1, 2, 64, 0, 128};
constexpr double kBound = 1e-4;

TEST(EngineWindowTest, ADecodingLayerHoldsItsWindowAndLittleMore) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kWindowed));
  LayerModel model(kWindowed);
  while (model.token_count() < 1500) {
    const uint64_t position = model.token_count();
    const ModelTokens tokens = RandomTokens(random, kWindowed, 3);
    const std::vector<float> q = RandomQueries(random, kWindowed, 3);
    model.Append(position, tokens);
    const auto results = engine.Decode(0, {Step(session, 0, position, kWindowed, tokens, q)});
    ASSERT_TRUE(results.ok()) << results.status();
    ASSERT_LT(LargestError((*results)[0].output, model.Attend(q, position)), kBound);
    engine->CheckInvariants();
  }
  const SessionInfo info = engine.Get(session.id);
  const uint64_t token_bytes = 2 * 64 * 4;
  EXPECT_LT(info.logical_bytes, (128 + 64 + 3) * token_bytes);
  EXPECT_LE(info.stored_bytes, (128 + 2 * 64) * token_bytes);
}

TEST(EngineWindowTest, APromptStaysUntilTheNextAddition) {
  TestEngine engine;
  std::mt19937 random(2);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kWindowed));
  LayerModel model(kWindowed);
  model.Append(0, RandomTokens(random, kWindowed, 2000));
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 2000)}).ok());
  // Every query of the prompt may still come.
  const std::vector<float> q = RandomQueries(random, kWindowed, 1000);
  for (const uint64_t token_count : {1000u, 2000u}) {
    const auto results = engine.Attend(0, {Query(session.id, kWindowed, q, token_count)});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_LT(LargestError((*results)[0].output, model.Attend(q, token_count - 1000)), kBound);
  }
  ASSERT_TRUE(engine.Append(session, 0, 2000, {RandomTokens(random, kWindowed, 1)}).ok());
  // Queries from 1999 on remain, which see from 1872 on: in the second segment, which begins at
  // 1040.
  EXPECT_EQ(
      engine.Fetch(session.id, 0, 1000, 1).status(),
      absl::OutOfRangeError("position: 1000, must be at least 1040, the first that layer 0 holds"));
  EXPECT_EQ(FloatsOf(engine.Fetch(session.id, 0, 1040, 5)->k), model.Slice(1040, 5).k);
  engine->CheckInvariants();
}

TEST(EngineWindowTest, WhatIsGoneIsAnErrorAndNoWrongAnswer) {
  TestEngine engine;
  std::mt19937 random(3);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kWindowed));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kWindowed, 2000)}).ok());
  ASSERT_TRUE(engine.Append(session, 0, 2000, {RandomTokens(random, kWindowed, 1)}).ok());
  const std::vector<float> q = RandomQueries(random, kWindowed, 1);
  EXPECT_EQ(
      engine.Attend(0, {Query(session.id, kWindowed, q, 1100)}).status(),
      absl::OutOfRangeError("items[0].token_count: a query at position 1099 sees tokens from "
                            "972 on, the layer holds them from 1040 on (sliding_window 128)"));
  EXPECT_TRUE(engine.Attend(0, {Query(session.id, kWindowed, q, 1168)}).ok());
  EXPECT_EQ(engine.Truncate(session, 1167).status(),
            absl::OutOfRangeError("token_count: 1167, must be 0 or at least 1168: layer 0 holds "
                                  "tokens from 1040 on and has a sliding_window of 128"));
  const SessionInfo truncated = *engine.Truncate(session, 1168);
  EXPECT_TRUE(engine.Attend(0, {Query(session.id, kWindowed, q)}).ok());
  engine->CheckInvariants();
  EXPECT_EQ(engine.Truncate(truncated, 0)->stored_bytes, 0u);
  engine->CheckInvariants();
}

TEST(EngineWindowTest, ALayerThatRunsAheadKeepsWhatReadersSee) {
  TestEngine engine;
  std::mt19937 random(4);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kWindowed, 2));
  for (int layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(engine.Append(session, layer, 0, {RandomTokens(random, kWindowed, 400)}).ok());
  }
  for (uint64_t position = 400; position < 1400; position += 100) {
    ASSERT_TRUE(engine.Append(session, 0, position, {RandomTokens(random, kWindowed, 100)}).ok());
  }
  const std::vector<float> q = RandomQueries(random, kWindowed, 1);
  EXPECT_EQ((*engine.Attend(0, {Query(session.id, kWindowed, q)}))[0].token_count, 400u);
  EXPECT_TRUE(engine.Truncate(session, 400).ok());
  engine->CheckInvariants();
}

TEST(EngineWindowTest, AWindowSmallerThanTheTailFreesTheTail) {
  TestEngine engine;
  std::mt19937 random(5);
  LayerShape shape = kWindowed;
  shape.sliding_window = 10;
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, shape));
  LayerModel model(shape);
  while (model.token_count() < 500) {
    const uint64_t position = model.token_count();
    const ModelTokens tokens = RandomTokens(random, shape, 1);
    const std::vector<float> q = RandomQueries(random, shape, 1);
    model.Append(position, tokens);
    const auto results = engine.Decode(0, {Step(session, 0, position, shape, tokens, q)});
    ASSERT_TRUE(results.ok()) << results.status();
    // Exact, because nothing lives long enough to be sealed.
    ASSERT_LT(LargestError((*results)[0].output, model.Attend(q, position)), kBound);
    engine->CheckInvariants();
  }
  EXPECT_LE(engine.Get(session.id).stored_bytes, 2 * 64 * 2 * 64 * 4u);
  EXPECT_EQ(engine.counts().sealed_tokens, 0u);
}

}  // namespace
}  // namespace kvdepot
