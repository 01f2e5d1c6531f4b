// What turns of sealing hand to a backend that takes many segments at once, and that the same is
// sealed as one by one.
#include "server/sealer.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "tests/server/batching_backend.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 2, 64, 0, 0};
constexpr uint64_t kTokenBytes = 2 * 64 * 4;
constexpr uint64_t kAmple = uint64_t{1} << 30;

// One Append call for all layers.
void AppendPrompt(TestEngine& engine, const SessionInfo& session,
                  const std::vector<ModelTokens>& layers) {
  auto addition = engine->BeginAppend(engine.caller(), session.id, session.generation);
  ASSERT_TRUE(addition.ok());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    ASSERT_TRUE(
        engine.AppendChunk(**addition, Chunk(static_cast<int>(layer), 0, kShape, layers[layer]))
            .ok());
  }
  ASSERT_TRUE(engine.Finish(**addition).ok());
}

std::vector<ModelTokens> Prompt(unsigned seed, int layers, uint64_t tokens) {
  std::mt19937 random(seed);
  std::vector<ModelTokens> prompt;
  for (int layer = 0; layer < layers; ++layer) {
    prompt.push_back(RandomTokens(random, kShape, tokens));
  }
  return prompt;
}

// An engine that seals in batches beside one that seals one by one.
class SealerTest : public ::testing::Test {
 protected:
  void Run(const EngineOptions& options, size_t encode_bytes_max,
           const std::vector<ModelTokens>& prompt) {
    const int layers = static_cast<int>(prompt.size());
    TestEngine batched(options, std::make_unique<BatchingBackend>(encode_bytes_max, &job_counts_));
    TestEngine single;
    const SessionInfo session = *batched.Create(Spec("s", Codec::kPlanes, kShape, layers));
    const SessionInfo expected = *single.Create(Spec("s", Codec::kPlanes, kShape, layers));
    AppendPrompt(batched, session, prompt);
    AppendPrompt(single, expected, prompt);
    for (int layer = 0; layer < layers; ++layer) {
      const size_t index = static_cast<size_t>(layer);
      EXPECT_EQ(batched.Get(session.id).layers[index].sealed_end,
                single.Get(expected.id).layers[index].sealed_end);
      EXPECT_TRUE(
          SameTokens(batched.FetchAll(session.id, layer), single.FetchAll(expected.id, layer)));
    }
    EXPECT_EQ(batched.Get(session.id).stored_bytes, single.Get(expected.id).stored_bytes);
    batched->CheckInvariants();
    counts_ = batched.counts();
  }

  std::vector<size_t> job_counts_;
  CountingObserver::Counts counts_;
};

TEST_F(SealerTest, AllLayersOfAPromptAreOneCall) {
  Run({}, kAmple, Prompt(1, 4, 500));
  EXPECT_EQ(job_counts_, std::vector<size_t>{4});
}

TEST_F(SealerTest, SegmentsOfALayerShareACallAndItsOwnCalibration) {
  Run({}, kAmple, Prompt(2, 1, 16 + 3 * 1024 + 64));
  EXPECT_EQ(job_counts_, std::vector<size_t>{3});
}

TEST_F(SealerTest, ACallTakesNoMoreThanTheBackendSays) {
  Run({}, 2 * 384 * kTokenBytes, Prompt(3, 5, 500));
  EXPECT_EQ(job_counts_, (std::vector<size_t>{2, 2, 1}));
}

// Beside the tokens there is memory for one segment, of 14 KB; each that is sealed frees 196 KB.
TEST_F(SealerTest, ATurnTakesWhatThereIsMemoryForAndPutsNothingOff) {
  EngineOptions options;
  options.budget_bytes = 4 * (16 + 8 * 64) * kTokenBytes + (20 << 10);
  Run(options, kAmple, Prompt(4, 4, 500));
  EXPECT_EQ(job_counts_, (std::vector<size_t>{1, 3}));
  EXPECT_EQ(counts_.deferred_seals, 0);
}

TEST_F(SealerTest, WhatLeavesTheRangeOfPlanesIsRawAmongOthers) {
  std::vector<ModelTokens> prompt = Prompt(5, 3, 500);
  for (float& value : prompt[1].v) value *= 1e30f;
  Run({}, kAmple, prompt);
  EXPECT_EQ(job_counts_, (std::vector<size_t>{3, 1}));
  EXPECT_EQ(counts_.raw_segments, 1);
  EXPECT_EQ(counts_.planes_segments, 2);
}

// Beside the tokens there is memory for one segment at its largest, which is a third larger than
// what it comes to. What a segment gives back counts before the next turn.
TEST_F(SealerTest, SegmentsOfASizeThatIsNotKnownGiveBackTheRest) {
  const SessionSpec spec = Spec("s", Codec::kPackKv, kShape, 4);
  const size_t worst_bytes =
      SegmentBytes(kShape, DType::kFp32, Codec::kPackKv, nullptr, 384, spec.packkv);
  EngineOptions options;
  options.budget_bytes = 4 * (16 + 8 * 64) * kTokenBytes + worst_bytes;
  TestEngine engine(options, std::make_unique<BatchingBackend>(kAmple, &job_counts_));
  const SessionInfo session = *engine.Create(spec);
  AppendPrompt(engine, session, Prompt(7, 4, 500));
  EXPECT_EQ(job_counts_, (std::vector<size_t>{1, 3}));
  EXPECT_EQ(engine.counts().packkv_segments, 4);
  EXPECT_EQ(engine.counts().deferred_seals, 0);
  const uint64_t exact_bytes = 4 * (16 + 2 * 64) * kTokenBytes;
  const uint64_t stored_bytes = engine.Get(session.id).stored_bytes;
  EXPECT_GT(stored_bytes, exact_bytes);
  EXPECT_LT(stored_bytes, exact_bytes + 4 * worst_bytes);
  EXPECT_EQ(engine->used_bytes(), stored_bytes);
  engine->CheckInvariants();
}

// Each layer has three segments due at the end. Those of layer 0 must become raw, for which there
// is no memory: they stay due, layer 1 is sealed.
TEST_F(SealerTest, ASegmentWithoutMemoryHoldsUpItsOwnLayerAlone) {
  EngineOptions options;
  options.prompt_tokens_min = 1000;
  options.budget_bytes = 2 * (16 + 14 * 64) * kTokenBytes + (100 << 10);
  TestEngine engine(options, std::make_unique<BatchingBackend>(kAmple, &job_counts_));
  std::vector<ModelTokens> prompt = Prompt(6, 2, 900);
  for (float& value : prompt[0].v) value *= 1e30f;
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape, 2));
  AppendPrompt(engine, session, prompt);
  EXPECT_EQ(job_counts_, std::vector<size_t>{6});
  EXPECT_EQ(engine.Get(session.id).layers[0].sealed_end, 0u);
  EXPECT_EQ(engine.Get(session.id).layers[1].sealed_end, 16 + 768u);
  EXPECT_EQ(engine.counts().deferred_seals, 1);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), prompt[0]));
  engine->CheckInvariants();
  // What layer 1 freed makes the room.
  ASSERT_TRUE(engine.Seal(session).ok());
  EXPECT_EQ(engine.Get(session.id).layers[0].sealed_end, 16 + 768u);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), prompt[0]));
  engine->CheckInvariants();
}

}  // namespace
}  // namespace kvdepot
