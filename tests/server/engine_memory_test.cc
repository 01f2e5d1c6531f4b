// Budgets and quotas: what does not fit changes nothing, and sealing that lacks memory is only put
// off.
#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gpu/calibration_bytes.h"
#include "server/calibration_store.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {1, 2, 64, 0, 0};
constexpr uint64_t kTokenBytes = 2 * 64 * 4;
constexpr uint64_t kSinksBytes = 16 * kTokenBytes;
constexpr uint64_t kBlockBytes = 64 * kTokenBytes;

TEST(EngineMemoryTest, AChunkThatDoesNotFitChangesNothing) {
  EngineOptions options;
  options.budget_bytes = kSinksBytes + 2 * kBlockBytes;
  TestEngine engine(options);
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  LayerModel model(kShape);
  model.Append(0, RandomTokens(random, kShape, 100));
  ASSERT_TRUE(engine.Append(session, 0, 0, {model.Slice(0, 100)}).ok());
  EXPECT_EQ(engine.Append(session, 0, 100, {RandomTokens(random, kShape, 45)}).status(),
            absl::ResourceExhaustedError("budget_bytes: 73728 used of 73728, 32768 more needed"));
  EXPECT_EQ(engine.Get(session.id).committed_token_count, 100u);
  EXPECT_EQ(engine.FetchAll(session.id, 0).k, model.Slice(0, 100).k);
  engine->CheckInvariants();
  EXPECT_TRUE(engine.Append(session, 0, 100, {RandomTokens(random, kShape, 44)}).ok());
}

TEST(EngineMemoryTest, ATenantIsBoundByItsQuotaAndTheNextIsNot) {
  EngineOptions options;
  options.budget_bytes = 10 * kBlockBytes;
  options.tenant_quota_bytes = kSinksBytes + kBlockBytes;
  TestEngine engine(options);
  std::mt19937 random(2);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  EXPECT_EQ(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 81)}).status(),
            absl::ResourceExhaustedError("tenant_quota_bytes: 0 used of 40960, 73728 more needed"));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 80)}).ok());
  EXPECT_EQ(engine->tenant_used_bytes("tenant"), kSinksBytes + kBlockBytes);
  engine.caller().tenant = "other";
  const SessionInfo theirs = *engine.Create(Spec("s", Codec::kRaw, kShape));
  EXPECT_TRUE(engine.Append(theirs, 0, 0, {RandomTokens(random, kShape, 80)}).ok());
  EXPECT_EQ(engine->used_bytes(), 2 * (kSinksBytes + kBlockBytes));
}

TEST(EngineMemoryTest, ABudgetShrinksBelowWhatIsUsedAndGrowsAgain) {
  EngineOptions options;
  options.budget_bytes = 10 * kBlockBytes;
  TestEngine engine(options);
  std::mt19937 random(4);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  const ModelTokens tokens = RandomTokens(random, kShape, 80);
  ASSERT_TRUE(engine.Append(session, 0, 0, {tokens}).ok());
  engine->SetBudget(kBlockBytes);
  EXPECT_EQ(engine->budget_bytes(), kBlockBytes);
  EXPECT_EQ(engine->tenant_quota_bytes(), kBlockBytes);
  EXPECT_EQ(engine.Append(session, 0, 80, {RandomTokens(random, kShape, 1)}).status(),
            absl::ResourceExhaustedError("budget_bytes: 40960 used of 32768, 32768 more needed"));
  EXPECT_EQ(engine.FetchAll(session.id, 0).k, tokens.k);
  engine->CheckInvariants();
  engine->SetBudget(kSinksBytes + 2 * kBlockBytes);
  EXPECT_TRUE(engine.Append(session, 0, 80, {RandomTokens(random, kShape, 1)}).ok());
}

TEST(EngineMemoryTest, ADecodeThatDoesNotFitStoresNoStep) {
  EngineOptions options;
  options.budget_bytes = 3 * kSinksBytes;
  TestEngine engine(options);
  std::mt19937 random(3);
  const SessionInfo a = *engine.Create(Spec("a", Codec::kRaw, kShape));
  const SessionInfo b = *engine.Create(Spec("b", Codec::kRaw, kShape));
  const ModelTokens small = RandomTokens(random, kShape, 16);
  const ModelTokens large = RandomTokens(random, kShape, 17);
  const std::vector<float> q16 = RandomQueries(random, kShape, 16);
  const std::vector<float> q17 = RandomQueries(random, kShape, 17);
  EXPECT_EQ(engine.Decode(0, {Step(a, 0, 0, kShape, small, q16), Step(b, 0, 0, kShape, large, q17)})
                .status(),
            absl::ResourceExhaustedError("budget_bytes: 8192 used of 24576, 40960 more needed"));
  EXPECT_EQ(engine->used_bytes(), 0u);
  EXPECT_EQ(engine.Get(a.id).committed_token_count, 0u);
}

TEST(EngineMemoryTest, ATruncationThatCannotCopyChangesNothing) {
  EngineOptions options;
  options.budget_bytes = kSinksBytes + 2 * kBlockBytes;
  TestEngine engine(options);
  std::mt19937 random(4);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 144)}).ok());
  EXPECT_EQ(engine.Truncate(session, 100).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine.Get(session.id).generation, 1u);
  EXPECT_EQ(engine.Get(session.id).committed_token_count, 144u);
  // Between two extents there is nothing to copy.
  EXPECT_EQ(engine.Truncate(session, 80)->stored_bytes, kSinksBytes + kBlockBytes);
  engine->CheckInvariants();
}

// A session fills the budget but for 4 KiB, less than a segment takes. Another session's end makes
// room.
TEST(EngineMemoryTest, SealingWithoutMemoryIsPutOffAndComesOutTheSame) {
  EngineOptions options;
  options.budget_bytes = 2 * kSinksBytes + 5 * kBlockBytes + 4096;
  TestEngine scarce(options);
  TestEngine ample;
  std::mt19937 random(5);
  LayerModel model(kShape);
  model.Append(0, RandomTokens(random, kShape, 400));
  const SessionInfo ballast = *scarce.Create(Spec("ballast", Codec::kRaw, kShape));
  ASSERT_TRUE(scarce.Append(ballast, 0, 0, {model.Slice(0, 1)}).ok());
  const SessionInfo session = *scarce.Create(Spec("s", Codec::kPlanes, kShape));
  const SessionInfo expected = *ample.Create(Spec("s", Codec::kPlanes, kShape));
  for (uint64_t position = 0; position < 336; position += 84) {
    ASSERT_TRUE(scarce.Append(session, 0, position, {model.Slice(position, 84)}).ok());
    ASSERT_TRUE(ample.Append(expected, 0, position, {model.Slice(position, 84)}).ok());
  }
  EXPECT_EQ(ample.Get(expected.id).layers[0].sealed_end, 272u);
  EXPECT_EQ(scarce.Get(session.id).layers[0].sealed_end, 0u);
  EXPECT_GT(scarce.counts().deferred_seals, 0);
  scarce->CheckInvariants();
  // An explicit seal says what it lacks.
  EXPECT_EQ(scarce.Seal(session).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scarce.Append(session, 0, 336, {model.Slice(336, 64)}).status().code(),
            absl::StatusCode::kResourceExhausted);

  ASSERT_TRUE(scarce->DeleteSession(scarce.caller(), ballast.id).ok());
  // What was put off is sealed first, and makes the room for these.
  ASSERT_TRUE(scarce.Append(session, 0, 336, {model.Slice(336, 64)}).ok());
  ASSERT_TRUE(ample.Append(expected, 0, 336, {model.Slice(336, 64)}).ok());
  EXPECT_EQ(scarce.Get(session.id).layers[0].sealed_end, 272u);
  EXPECT_EQ(scarce.FetchAll(session.id, 0).k, ample.FetchAll(expected.id, 0).k);
  EXPECT_EQ(scarce.FetchAll(session.id, 0).v, ample.FetchAll(expected.id, 0).v);
  scarce->CheckInvariants();
}

TEST(EngineMemoryTest, DecodingAlsoSealsFirstWhatWasPutOff) {
  EngineOptions options;
  options.budget_bytes = 2 * kSinksBytes + 5 * kBlockBytes + 4096;
  TestEngine engine(options);
  std::mt19937 random(6);
  const SessionInfo ballast = *engine.Create(Spec("ballast", Codec::kRaw, kShape));
  ASSERT_TRUE(engine.Append(ballast, 0, 0, {RandomTokens(random, kShape, 1)}).ok());
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 200)}).ok());
  ASSERT_TRUE(engine.Append(session, 0, 200, {RandomTokens(random, kShape, 136)}).ok());
  engine.clock().Advance(absl::Seconds(7));
  ASSERT_TRUE(engine->DeleteSession(engine.caller(), ballast.id).ok());
  const ModelTokens tokens = RandomTokens(random, kShape, 1);
  const std::vector<float> q = RandomQueries(random, kShape, 1);
  ASSERT_TRUE(engine.Decode(0, {Step(session, 0, 336, kShape, tokens, q)}).ok());
  EXPECT_EQ(engine.Get(session.id).layers[0].sealed_end, 272u);
  // Due since the addition that decided it.
  EXPECT_EQ(engine.counts().seal_lag_max, absl::Seconds(7));
}

TEST(EngineMemoryTest, MomentsAreChargedUntilACalibrationTakesTheirPlace) {
  EngineOptions options;
  options.tenant_quota_bytes = 100 * kBlockBytes;
  TestEngine engine(options);
  std::mt19937 random(8);
  SessionSpec spec = Spec("s", Codec::kPlanes, kShape);
  spec.query_second_moments = {std::vector<float>(64, 1)};
  const SessionInfo session = *engine.Create(spec);
  EXPECT_EQ(engine->used_bytes(), 64 * sizeof(float));
  EXPECT_EQ(engine.Get(session.id).stored_bytes, 64 * sizeof(float));
  // Asking again takes nothing more.
  ASSERT_TRUE(engine.Create(spec).ok());
  EXPECT_EQ(engine->used_bytes(), 64 * sizeof(float));
  engine->CheckInvariants();
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, kShape, 400)}).ok());
  ASSERT_GT(engine.Get(session.id).layers[0].sealed_end, 0u);
  EXPECT_EQ(engine->used_bytes(), engine.Get(session.id).stored_bytes);
  // Without tokens the calibration is what is left.
  ASSERT_TRUE(engine.Truncate(session, 0).ok());
  EXPECT_EQ(engine->used_bytes(), CalibrationBytes(1, 64));
  engine->CheckInvariants();
}

TEST(EngineMemoryTest, MomentsThatDoNotFitAreRefused) {
  EngineOptions options;
  options.tenant_quota_bytes = kSinksBytes + 200;
  TestEngine engine(options);
  std::mt19937 random(9);
  SessionSpec spec = Spec("s", Codec::kPlanes, kShape);
  spec.query_second_moments = {std::vector<float>(64, 1)};
  const SessionInfo session = *engine.Create(Spec("empty", Codec::kPlanes, kShape));
  const ModelTokens tokens = RandomTokens(random, kShape, 16);
  TokenChunk chunk = Chunk(0, 0, kShape, tokens);
  chunk.query_second_moments = spec.query_second_moments[0];
  auto addition = engine->BeginAppend(engine.caller(), session.id, 1);
  EXPECT_EQ(engine.AppendChunk(**addition, chunk).status(),
            absl::ResourceExhaustedError("tenant_quota_bytes: 8192 used of 8392, 256 more needed "
                                         "for query_second_moments"));
  EXPECT_EQ(engine->used_bytes(), 0u);
  chunk.query_second_moments = {};
  ASSERT_TRUE(engine.AppendChunk(**addition, chunk).ok());
  ASSERT_TRUE(engine.Finish(**addition).ok());
  EXPECT_EQ(engine.Create(spec).status(),
            absl::ResourceExhaustedError("tenant_quota_bytes: 8192 used of 8392, 256 more needed "
                                         "for query_second_moments"));
  EXPECT_EQ(engine->session_count(), 1u);
  engine->CheckInvariants();
}

TEST(EngineMemoryTest, MomentsWithoutUseAreNotKept) {
  TestEngine engine;
  SessionSpec spec = Spec("raw", Codec::kRaw, kShape);
  spec.query_second_moments = {std::vector<float>(64, 1)};
  ASSERT_TRUE(engine.Create(spec).ok());
  EXPECT_EQ(engine->used_bytes(), 0u);
}

TEST(EngineMemoryTest, ATenantIsChargedForTheCalibrationsThatItStores) {
  Calibration calibration;
  calibration.hash = std::string(64, 'c');
  TensorCalibration tensor;
  tensor.channel_order.resize(64);
  std::iota(tensor.channel_order.begin(), tensor.channel_order.end(), uint8_t{0});
  tensor.patterns = {1, 2, 3, 4};
  calibration.layers = {{{tensor, tensor}}};
  const uint64_t bytes = CalibrationStore::BytesOf(calibration);
  EXPECT_GT(bytes, kProfileCount * 2 * 64u);
  EngineOptions options;
  options.tenant_quota_bytes = bytes + 1;
  TestEngine engine(options);
  ASSERT_TRUE(engine->PutCalibration(engine.caller(), calibration).ok());
  EXPECT_EQ(engine->tenant_used_bytes("tenant"), bytes);
  // Storing it again is fine and takes nothing.
  ASSERT_TRUE(engine->PutCalibration(engine.caller(), calibration).ok());
  EXPECT_EQ(engine->used_bytes(), bytes);
  engine->CheckInvariants();
  calibration.hash = std::string(64, 'd');
  EXPECT_EQ(engine->PutCalibration(engine.caller(), calibration),
            absl::ResourceExhaustedError(absl::StrCat("tenant_quota_bytes: ", bytes, " used of ",
                                                      bytes + 1, ", ", bytes,
                                                      " more needed for the calibration")));
  EXPECT_EQ(engine.calibrations().List("tenant").size(), 1u);
  engine->CheckInvariants();
}

TEST(EngineMemoryTest, DeletingGivesAllMemoryBack) {
  TestEngine engine;
  std::mt19937 random(7);
  const SessionInfo session = *engine.Create(Spec("s", Codec::kPlanes, kShape, 3));
  for (int layer = 0; layer < 3; ++layer) {
    ASSERT_TRUE(engine.Append(session, layer, 0, {RandomTokens(random, kShape, 1500)}).ok());
  }
  EXPECT_EQ(engine->used_bytes(), engine.Get(session.id).stored_bytes);
  ASSERT_TRUE(engine->DeleteSession(engine.caller(), session.id).ok());
  EXPECT_EQ(engine->used_bytes(), 0u);
  EXPECT_EQ(engine->tenant_used_bytes("tenant"), 0u);
}

}  // namespace
}  // namespace kvdepot
