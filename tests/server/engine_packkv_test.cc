// Sessions whose segments are stored by `packkv`: sizes that are known only once a segment is
// encoded, and tokens that come back in their order, always the same.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tests/gpu/forwarding_backend.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr LayerShape kShape = {2, 6, 64, 0, 0};

SessionSpec PackKvSpec(const std::string& name, const LayerShape& shape, int layers = 1) {
  SessionSpec spec = Spec(name, Codec::kPackKv, shape, layers);
  spec.packkv.pack_tokens = 8;
  spec.packkv.repacking = packkv::Repacking::kMedian;
  return spec;
}

ModelTokens Slice(const ModelTokens& tokens, uint64_t position, uint64_t count) {
  LayerModel model(kShape);
  model.Append(0, tokens);
  return model.Slice(position, count);
}

TEST(EnginePackKvTest, ASegmentIsChargedForWhatItCameTo) {
  TestEngine engine;
  std::mt19937 random(1);
  const SessionInfo session = *engine.Create(PackKvSpec("s", kShape, 2));
  for (const int layer : {0, 1}) {
    ASSERT_TRUE(engine.Append(session, layer, 0, {RandomTokens(random, kShape, 700)}).ok());
  }
  const SessionInfo info = engine.Get(session.id);
  ASSERT_GT(info.layers[0].sealed_end, 0u);
  EXPECT_EQ(engine.counts().packkv_segments, 2);
  engine->CheckInvariants();
  EXPECT_EQ(engine->used_bytes(), info.stored_bytes);
  EXPECT_EQ(engine->totals().Of(Codec::kPackKv).stored, info.stored_bytes);
  // Memory that the worst case took is free again, not only uncharged.
  const SlabUsage slabs = engine->slab_usage();
  EXPECT_EQ(slabs.slab_bytes - slabs.unused_bytes, info.stored_bytes);
  const int sealed = static_cast<int>(info.layers[0].sealed_end) - kSinkTokens;
  const size_t worst_bytes =
      SegmentBytes(kShape, DType::kFp32, Codec::kPackKv, nullptr, sealed, info.spec.packkv);
  const uint64_t exact_bytes =
      2 * (ExactExtentBytes(kShape, DType::kFp32, 16) +
           ExactExtentBytes(kShape, DType::kFp32, (700 - 16 - sealed + 63) / 64 * 64));
  EXPECT_LT(info.stored_bytes, exact_bytes + 2 * worst_bytes);
}

TEST(EnginePackKvTest, EveryRangeIsThatOfTheWholeAndStaysSoBehindATruncation) {
  TestEngine engine;
  std::mt19937 random(2);
  const SessionInfo session = *engine.Create(PackKvSpec("s", kShape));
  const ModelTokens input = RandomTokens(random, kShape, 900);
  ASSERT_TRUE(engine.Append(session, 0, 0, {input}).ok());
  ASSERT_GE(engine.Get(session.id).layers[0].sealed_end, 500u);
  const ModelTokens first = engine.FetchAll(session.id, 0);
  for (const auto& [position, count] :
       {std::pair{0, 900}, {15, 2}, {16, 64}, {79, 2}, {100, 333}, {5, 890}}) {
    const auto fetched =
        engine.Fetch(session.id, 0, static_cast<uint64_t>(position), static_cast<uint64_t>(count));
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    const ModelTokens expected =
        Slice(first, static_cast<uint64_t>(position), static_cast<uint64_t>(count));
    EXPECT_EQ(FloatsOf(fetched->k), expected.k) << position;
    EXPECT_EQ(FloatsOf(fetched->v), expected.v) << position;
  }

  // Inside a block of a segment, then on from there.
  absl::StatusOr<SessionInfo> cut = engine.Truncate(session, 301);
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), Slice(first, 0, 301)));
  engine->CheckInvariants();
  LayerModel model(kShape);
  model.Append(0, Slice(first, 0, 301));
  const ModelTokens more = RandomTokens(random, kShape, 40);
  model.Append(301, more);
  ASSERT_TRUE(engine.Append(*cut, 0, 301, {more}).ok());
  const std::vector<float> q = RandomQueries(random, kShape, 3);
  const auto attended = engine.Attend(0, {Query(session.id, kShape, q)});
  ASSERT_TRUE(attended.ok()) << attended.status();
  EXPECT_LT(LargestError(attended->front().output, model.Attend(q, 338)), 1e-4);
  engine->CheckInvariants();
}

TEST(EnginePackKvTest, WindowAndSoftCapHold) {
  TestEngine engine;
  std::mt19937 random(3);
  const LayerShape shape = {1, 4, 128, 20, 300};
  const SessionInfo session = *engine.Create(PackKvSpec("s", shape));
  ASSERT_TRUE(engine.Append(session, 0, 0, {RandomTokens(random, shape, 800)}).ok());
  const SessionInfo info = engine.Get(session.id);
  ASSERT_GT(info.layers[0].sealed_end, 500u);
  const std::vector<float> q = RandomQueries(random, shape, 2);
  const auto attended = engine.Attend(0, {Query(session.id, shape, q)});
  ASSERT_TRUE(attended.ok()) << attended.status();
  // Tokens before the window cannot be seen: any values do.
  const ModelTokens held = engine.FetchAll(session.id, 0, 480);
  LayerModel model(shape);
  model.Append(0, RandomTokens(random, shape, 480));
  model.Append(480, held);
  EXPECT_LT(LargestError(attended->front().output, model.Attend(q, 798)), 1e-4);
}

TEST(EnginePackKvTest, ValuesBeyondTheRangeAreRaw) {
  TestEngine engine;
  std::mt19937 random(4);
  const SessionInfo session = *engine.Create(PackKvSpec("s", kShape));
  ModelTokens input = RandomTokens(random, kShape, 500);
  for (float& value : input.k) value *= 5e37f;
  ASSERT_TRUE(engine.Append(session, 0, 0, {input}).ok());
  EXPECT_EQ(engine.counts().raw_segments, 1);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), input));
  engine->CheckInvariants();
}

// Room for the worst case, 11 bits a value, is what sealing needs.
TEST(EnginePackKvTest, WithoutMemoryForTheWorstCaseTokensStayExact) {
  SessionSpec spec = Spec("s", Codec::kPackKv, kShape);
  const size_t worst_bytes =
      SegmentBytes(kShape, DType::kFp32, Codec::kPackKv, nullptr, 384, spec.packkv);
  EngineOptions options;
  options.budget_bytes = ExactExtentBytes(kShape, DType::kFp32, 16 + 8 * 64) + worst_bytes - 1;
  TestEngine engine(options);
  std::mt19937 random(5);
  const SessionInfo session = *engine.Create(spec);
  const ModelTokens input = RandomTokens(random, kShape, 500);
  ASSERT_TRUE(engine.Append(session, 0, 0, {input}).ok());
  EXPECT_EQ(engine.counts().deferred_seals, 1);
  EXPECT_TRUE(SameTokens(engine.FetchAll(session.id, 0), input));
  engine->CheckInvariants();

  options.budget_bytes += 1;
  TestEngine ample(options);
  const SessionInfo other = *ample.Create(spec);
  ASSERT_TRUE(ample.Append(other, 0, 0, {input}).ok());
  EXPECT_EQ(ample.counts().deferred_seals, 0);
  EXPECT_EQ(ample.counts().packkv_segments, 1);
}

// The calibration's weights make channels of K finer, and are held with it, not charged again.
TEST(EnginePackKvTest, ANormalisedSessionTakesItsCalibrationsWeights) {
  constexpr LayerShape kOneHead = {1, 1, 64, 0, 0};
  Calibration calibration;
  calibration.hash = std::string(64, 'a');
  HeadCalibration head;
  for (TensorCalibration* tensor : {&head.k, &head.v}) {
    for (int c = 0; c < 64; ++c) tensor->channel_order.push_back(static_cast<uint8_t>(c));
  }
  head.k.channel_weights.assign(64, 1);
  head.k.channel_weights[5] = 10000;
  calibration.layers = {{head}};
  TestEngine engine;
  ASSERT_TRUE(engine.calibrations().AddShared(calibration).ok());
  std::mt19937 random(6);
  const ModelTokens input = RandomTokens(random, kOneHead, 600);
  double errors[2] = {};
  for (const bool named : {false, true}) {
    SessionSpec spec = Spec(named ? "named" : "own", Codec::kPackKv, kOneHead);
    spec.packkv = packkv::DefaultOptions(true);
    if (named) spec.calibration = calibration.hash;
    const auto session = engine.Create(spec);
    ASSERT_TRUE(session.ok()) << session.status();
    ASSERT_TRUE(engine.Append(*session, 0, 0, {input}).ok());
    const ModelTokens stored = engine.FetchAll(session->id, 0);
    for (size_t i = 5; i < input.k.size(); i += 64) {
      errors[named] += std::fabs(stored.k[i] - input.k[i]);
    }
    const std::vector<float> q = RandomQueries(random, kOneHead, 1);
    LayerModel model(kOneHead);
    model.Append(0, stored);
    const auto attended = engine.Attend(0, {Query(session->id, kOneHead, q)});
    ASSERT_TRUE(attended.ok()) << attended.status();
    EXPECT_LT(LargestError(attended->front().output, model.Attend(q, 599)), 1e-4);
  }
  EXPECT_EQ(engine.counts().packkv_segments, 2);
  EXPECT_LT(errors[true], errors[false] / 2);
  engine->CheckInvariants();
}

class NoPackKvBackend final : public ForwardingBackend {
 public:
  NoPackKvBackend() : ForwardingBackend(MakeCpuBackend(1)) {}
  absl::Status Supports(const LayerShape& shape, DType, Codec codec,
                        const packkv::Options&) const override {
    if (codec != Codec::kPackKv || shape.head_dim == 64) return absl::OkStatus();
    return absl::UnimplementedError("codec: packkv, must be raw or planes on GPU-1");
  }
};

TEST(EnginePackKvTest, WhatTheDeviceCannotIsRefusedBeforeAnythingIsHeld) {
  TestEngine engine({}, std::make_unique<NoPackKvBackend>());
  SessionSpec spec = PackKvSpec("s", kShape, 2);
  spec.layers[1].head_dim = 128;
  EXPECT_EQ(engine.Create(spec).status(),
            absl::UnimplementedError("codec: packkv, must be raw or planes on GPU-1"));
  EXPECT_EQ(engine->session_count(), 0u);
  EXPECT_EQ(engine->used_bytes(), 0u);
  EXPECT_EQ(engine->codecs(), (std::vector<Codec>{Codec::kRaw, Codec::kPlanes}));
  EXPECT_TRUE(engine.Create(PackKvSpec("s", kShape)).ok());
  EXPECT_EQ(TestEngine()->codecs().size(), 3u);
}

TEST(EnginePackKvTest, OptionsThatMakeNoSenseAreNamed) {
  TestEngine engine;
  const auto error = [&engine](const std::function<void(SessionSpec&)>& change) {
    SessionSpec spec = PackKvSpec("new", kShape);
    change(spec);
    return engine.Create(spec).status();
  };
  using absl::InvalidArgumentError;
  EXPECT_EQ(error([](SessionSpec& s) { s.packkv.k_relative_scale = 0.001f; }),
            InvalidArgumentError("packkv.k_relative_scale: 0.001, must be 0.004..1"));
  EXPECT_EQ(error([](SessionSpec& s) { s.packkv.v_relative_scale = 1.5f; }),
            InvalidArgumentError("packkv.v_relative_scale: 1.5, must be 0.004..1"));
  EXPECT_EQ(error([](SessionSpec& s) { s.packkv.pack_tokens = 5; }),
            InvalidArgumentError("packkv.pack_tokens: 5, must be 4, 8 or 16"));
  EXPECT_EQ(error([](SessionSpec& s) { s.calibration = "abc"; }),
            InvalidArgumentError(
                "calibration: abc, must be empty with codec packkv unless it normalises"));
  EXPECT_EQ(error([](SessionSpec& s) {
              s.packkv.normalize = true;
              s.packkv.k_relative_scale = 2.5f;
            }),
            InvalidArgumentError("packkv.k_relative_scale: 2.5, must be 0.1..2 with normalize"));
}

TEST(EnginePackKvTest, SessionsOfOneNameHaveTheSameOptions) {
  TestEngine engine;
  const SessionSpec spec = PackKvSpec("chat", kShape);
  ASSERT_TRUE(engine.Create(spec).ok());
  EXPECT_TRUE(engine.Create(spec).ok());
  SessionSpec other = spec;
  other.packkv.repacking = packkv::Repacking::kGreedy;
  EXPECT_EQ(
      engine.Create(other).status(),
      absl::AlreadyExistsError("packkv.repacking: greedy, is median in the session named chat"));
  other = spec;
  other.packkv.v_relative_scale = 0.5f;
  EXPECT_EQ(
      engine.Create(other).status(),
      absl::AlreadyExistsError("packkv.v_relative_scale: 0.5, is 0.2 in the session named chat"));
}

}  // namespace
}  // namespace kvdepot
