#include "server/calibration_store.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>
#include <vector>

namespace kvdepot {
namespace {

const std::string kHash(64, 'a');
const std::string kOtherHash(64, 'b');

TensorCalibration Tensor(int head_dim) {
  TensorCalibration tensor;
  tensor.channel_order.resize(static_cast<size_t>(head_dim));
  std::iota(tensor.channel_order.rbegin(), tensor.channel_order.rend(), uint8_t{0});
  tensor.patterns = {1, 2, 3, 4};
  return tensor;
}

Calibration Model(const std::string& hash, int layers = 2, int kv_heads = 2, int head_dim = 64) {
  Calibration model;
  model.hash = hash;
  model.model = "test";
  model.description = "made up";
  model.layers.assign(static_cast<size_t>(layers),
                      std::vector<HeadCalibration>(static_cast<size_t>(kv_heads),
                                                   {Tensor(head_dim), Tensor(head_dim)}));
  return model;
}

const std::vector<LayerShape> kShapes = {{2, 4, 64, 0, 0}, {2, 8, 64, 30, 128}};

class CalibrationStoreTest : public testing::Test {
 protected:
  CalibrationStore store_{2};
};

TEST_F(CalibrationStoreTest, AProfilePicksItsPatterns) {
  ASSERT_TRUE(store_.AddShared(Model(kHash)).ok());
  const auto layout = store_.Find("anybody", kHash, Profile::kBalanced, kShapes);
  ASSERT_TRUE(layout.ok()) << layout.status();
  ASSERT_EQ((*layout)->size(), 2u);
  const LayerCalibration& layer = (**layout)[1];
  EXPECT_EQ(layer.hash_prefix[0], 0xaa);
  EXPECT_EQ(layer.hash_prefix[15], 0xaa);
  ASSERT_EQ(layer.heads.size(), 2u);
  EXPECT_EQ(layer.heads[0].k.pattern, 3);
  EXPECT_EQ(layer.heads[0].k.order[0], 63);
}

TEST_F(CalibrationStoreTest, SessionsShareOneLayout) {
  ASSERT_TRUE(store_.AddShared(Model(kHash)).ok());
  EXPECT_EQ(*store_.Find("a", kHash, Profile::kTiny, kShapes),
            *store_.Find("b", kHash, Profile::kTiny, kShapes));
}

TEST_F(CalibrationStoreTest, AnUploadIsSeenByItsTenantAlone) {
  ASSERT_TRUE(store_.Put("a", Model(kHash)).ok());
  EXPECT_TRUE(store_.Find("a", kHash, Profile::kTiny, kShapes).ok());
  EXPECT_EQ(store_.Find("b", kHash, Profile::kTiny, kShapes).status(),
            absl::NotFoundError("calibration: " + kHash + ", unknown"));
  EXPECT_EQ(store_.List("a").size(), 1u);
  EXPECT_TRUE(store_.List("b").empty());
}

TEST_F(CalibrationStoreTest, TheListIsInOrderOfHash) {
  ASSERT_TRUE(store_.Put("a", Model(kOtherHash, 3)).ok());
  ASSERT_TRUE(store_.AddShared(Model(kHash)).ok());
  const std::vector<CalibrationSummary> list = store_.List("a");
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].hash, kHash);
  EXPECT_TRUE(list[0].shared);
  EXPECT_EQ(list[1].hash, kOtherHash);
  EXPECT_FALSE(list[1].shared);
  EXPECT_EQ(list[1].layer_count, 3);
  EXPECT_EQ(list[1].model, "test");
  EXPECT_EQ(list[1].description, "made up");
}

TEST_F(CalibrationStoreTest, StoringAgainIsFineAndTakesNoRoom) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(store_.Put("a", Model(kHash)).ok());
  EXPECT_EQ(store_.List("a").size(), 1u);
}

TEST_F(CalibrationStoreTest, ATenantHasALimit) {
  ASSERT_TRUE(store_.Put("a", Model(std::string(64, '1'))).ok());
  ASSERT_TRUE(store_.Put("a", Model(std::string(64, '2'))).ok());
  EXPECT_EQ(store_.Put("a", Model(std::string(64, '3'))),
            absl::ResourceExhaustedError("calibrations_per_tenant_max: 2 of 2 are stored"));
  EXPECT_TRUE(store_.Put("b", Model(std::string(64, '3'))).ok());
  EXPECT_TRUE(store_.AddShared(Model(std::string(64, '4'))).ok());
}

TEST_F(CalibrationStoreTest, ACalibrationMustFitTheSession) {
  ASSERT_TRUE(store_.AddShared(Model(kHash)).ok());
  const auto error = [this](const std::vector<LayerShape>& shapes) {
    return std::string(
        store_.Find("a", kHash, Profile::kTiny, shapes).status().message().substr(0, 48));
  };
  EXPECT_EQ(error({{2, 4, 64, 0, 0}}), "layers: 1 entries, must be 2 with calibration aa");
  EXPECT_EQ(error({{2, 4, 64, 0, 0}, {4, 4, 64, 0, 0}}),
            "layers[1].kv_heads: 4, must be 2 with calibratio");
  EXPECT_EQ(error({{2, 4, 128, 0, 0}, {2, 4, 64, 0, 0}}),
            "layers[0].head_dim: 128, must be 64 with calibra");
}

TEST_F(CalibrationStoreTest, NonsenseIsRefusedByItsField) {
  const auto refused = [this](const Calibration& model, const std::string& beginning) {
    const absl::Status status = store_.AddShared(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message().substr(0, beginning.size()), beginning);
    EXPECT_TRUE(store_.List("a").empty());
  };
  refused(Model("AA"), "hash: 2 characters, must be 64 hexadecimal digits");
  refused(Model(kHash, 2, 0), "layers[0].heads: 0, must be at least 1");
  refused(Model(kHash, 2, 2, 65), "layers[0].heads[0].k.channel_order: 65 entries, must be 64, ");

  Calibration model = Model(kHash);
  model.layers[1][0].v.channel_order[3] = model.layers[1][0].v.channel_order[4];
  refused(model, "layers[1].heads[0].v.channel_order");
  model = Model(kHash);
  model.layers[1][1].k.channel_order.pop_back();
  refused(model, "layers[1].heads[1].k.channel_order");
  model = Model(kHash);
  model.layers[0][1].k.patterns[2] = 200;
  refused(model, "layers[0].heads[1].k.patterns");
  model = Model(kHash);
  model.layers[0][1].k.channel_weights = {1, 2};
  refused(model, "layers[0].heads[1].k.channel_weights: 2 entries, must be none or 64");
  model.layers[0][1].k.channel_weights.assign(64, std::numeric_limits<float>::quiet_NaN());
  refused(model, "layers[0].heads[1].k.channel_weights[0]: nan, must be finite");
  model = Model(kHash);
  model.layers[0][0].v.channel_weights.assign(64, 1);
  refused(model, "layers[0].heads[0].v.channel_weights: 64 entries, must be none");
}

}  // namespace
}  // namespace kvdepot
