#include "server/services/calibration_convert.h"

#include <functional>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kvdepot/v1/calibration.pb.h"

namespace kvdepot {
namespace {

v1::Calibration Valid() {
  v1::Calibration file;
  file.set_model("model");
  for (int layer = 0; layer < 2; ++layer) {
    v1::HeadCalibration* head = file.add_layers()->add_heads();
    for (v1::TensorCalibration* tensor : {head->mutable_k(), head->mutable_v()}) {
      for (int channel = 63; channel >= 0; --channel) {
        tensor->mutable_channel_order()->push_back(static_cast<char>(channel));
      }
      tensor->set_patterns(std::string("\1\2\3\4", 4));
    }
    for (int channel = 0; channel < 64; ++channel) head->mutable_k()->add_channel_weights(1);
  }
  return file;
}

TEST(ParseCalibration, ReadsEverything) {
  const std::string file = Valid().SerializeAsString();
  const absl::StatusOr<Calibration> calibration = ParseCalibration(file);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->hash.size(), 64u);
  EXPECT_EQ(calibration->model, "model");
  ASSERT_EQ(calibration->layers.size(), 2u);
  const HeadCalibration& head = calibration->layers[1][0];
  EXPECT_EQ(head.k.channel_order[0], 63);
  EXPECT_EQ(head.v.patterns[3], 4);
  EXPECT_EQ(head.k.channel_weights.size(), 64u);
}

TEST(ParseCalibration, NamesItByTheHashOfTheBytes) {
  const std::string file = Valid().SerializeAsString();
  v1::Calibration other = Valid();
  other.set_description("x");
  EXPECT_NE(ParseCalibration(file)->hash, ParseCalibration(other.SerializeAsString())->hash);
}

TEST(ParseCalibration, ChecksEveryField) {
  const auto refused = [](const std::string& field,
                          const std::function<void(v1::Calibration&)>& change) {
    v1::Calibration file = Valid();
    change(file);
    const absl::Status status = ParseCalibration(file.SerializeAsString()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_TRUE(absl::StartsWith(status.message(), field + ": ")) << field << " / " << status;
  };
  const auto head = [](v1::Calibration& file) { return file.mutable_layers(1)->mutable_heads(0); };
  refused("version", [](auto& f) { f.set_version(1); });
  refused("model", [](auto& f) { f.set_model(std::string(1025, 'x')); });
  refused("description", [](auto& f) { f.set_description(std::string(1025, 'x')); });
  refused("license", [](auto& f) { f.set_license(std::string(1025, 'x')); });
  refused("layers", [](auto& f) { f.clear_layers(); });
  refused("layers[1].heads", [](auto& f) { f.mutable_layers(1)->clear_heads(); });
  refused("layers[1].heads[0].k.channel_order",
          [&](auto& f) { head(f)->mutable_k()->mutable_channel_order()->pop_back(); });
  refused("layers[1].heads[0].v.channel_order",
          [&](auto& f) { head(f)->mutable_v()->set_channel_order(std::string(128, 'x')); });
  refused("layers[1].heads[0].v.patterns",
          [&](auto& f) { head(f)->mutable_v()->mutable_patterns()->pop_back(); });
  refused("layers[1].heads[0].k.channel_weights",
          [&](auto& f) { head(f)->mutable_k()->mutable_channel_weights()->RemoveLast(); });
  refused("layers[1].heads[0].k.channel_weights[3]", [&](auto& f) {
    head(f)->mutable_k()->set_channel_weights(3, std::numeric_limits<float>::infinity());
  });
  refused("layers[1].heads[0].v.channel_weights",
          [&](auto& f) { head(f)->mutable_v()->add_channel_weights(1); });
}

TEST(ParseCalibration, RefusesOtherBytes) {
  EXPECT_EQ(ParseCalibration("").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParseCalibration("\xFF not a message").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvdepot
