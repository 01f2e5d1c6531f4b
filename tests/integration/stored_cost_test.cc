// What a session costs, all in: segments with headers, tables and scales, sinks, tail and rounding,
// over all values. Sizes follow from lengths and widths alone, so synthetic values stand for real
// ones; the widths are those of two real layers.

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "gpu/numeric.h"
#include "gtest/gtest.h"
#include "server/services/calibration_convert.h"
#include "tests/server/engine_fixture.h"

namespace kvdepot {
namespace {

constexpr int kLayers = 2;
const LayerShape kShape{2, 12, 128, 0, 0};

class StoredCostTest : public ::testing::Test {
 protected:
  StoredCostTest() {
    std::ifstream file("tests/data/qwen2.5-coder-1.5b_dump-layers.calibration.binpb",
                       std::ios::binary);
    const auto calibration =
        ParseCalibration(std::string(std::istreambuf_iterator<char>(file), {}));
    EXPECT_TRUE(calibration.ok()) << calibration.status();
    EXPECT_TRUE(engine_.calibrations().AddShared(*calibration).ok());
    hash_ = calibration->hash;
    // bf16 of normal values, one token after the other; the same for K and V.
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    values_.resize(kTokensMax * kShape.row_values() * 2);
    for (size_t i = 0; i < values_.size(); i += 2) {
      const uint16_t bits = FloatToBf16(normal(random));
      memcpy(&values_[i], &bits, 2);
    }
  }

  SessionInfo Create(Profile profile) {
    SessionSpec spec = Spec("cost", Codec::kPlanes, kShape, kLayers);
    spec.dtype = DType::kBf16;
    spec.profile = profile;
    spec.calibration = hash_;
    auto session = engine_.Create(spec);
    EXPECT_TRUE(session.ok()) << session.status();
    return *session;
  }

  void Append(const SessionInfo& session, uint64_t position, uint64_t token_count) {
    auto addition = engine_->BeginAppend(engine_.caller(), session.id, 1);
    ASSERT_TRUE(addition.ok()) << addition.status();
    const size_t token_bytes = 2 * kShape.row_values();
    const absl::string_view bytes(&values_[position * token_bytes], token_count * token_bytes);
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto state =
          engine_.AppendChunk(**addition, {layer, position, token_count, bytes, bytes, {}});
      ASSERT_TRUE(state.ok()) << state.status();
    }
    ASSERT_TRUE(engine_.Finish(**addition).ok());
  }

  double BitsPerValue(const SessionInfo& session) {
    const SessionInfo info = engine_.Get(session.id);
    return 16.0 * static_cast<double>(info.stored_bytes) / static_cast<double>(info.logical_bytes);
  }

  static constexpr size_t kTokensMax = 32768;
  TestEngine engine_;
  std::string hash_;
  std::string values_;
};

TEST_F(StoredCostTest, PromptOf8192TokensAtCompact) {
  const SessionInfo session = Create(Profile::kCompact);
  Append(session, 0, 8192);
  EXPECT_LE(BitsPerValue(session), 2.40);
}

TEST_F(StoredCostTest, PromptOf32768TokensAtCompact) {
  const SessionInfo session = Create(Profile::kCompact);
  Append(session, 0, 32768);
  EXPECT_LE(BitsPerValue(session), 2.20);
}

TEST_F(StoredCostTest, PromptOf32768TokensAtTiny) {
  const SessionInfo session = Create(Profile::kTiny);
  Append(session, 0, 32768);
  EXPECT_LE(BitsPerValue(session), 1.70);
}

TEST_F(StoredCostTest, TokensOneByOneAtCompactMeanPast4096) {
  const SessionInfo session = Create(Profile::kCompact);
  double sum = 0;
  int count = 0;
  for (uint64_t position = 0; position < 8192; ++position) {
    Append(session, position, 1);
    if (position < 4096) continue;
    sum += BitsPerValue(session);
    ++count;
  }
  EXPECT_LE(sum / count, 2.85);
}

}  // namespace
}  // namespace kvdepot
