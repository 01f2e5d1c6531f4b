#include "server/calibration_folder.h"

#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "kvdepot/v1/calibration.pb.h"
#include "tests/server/temporary_folder.h"

namespace kvdepot {
namespace {

constexpr uint64_t kBytesMax = 10000;

std::string ValidFile(const std::string& model) {
  v1::Calibration file;
  file.set_model(model);
  v1::HeadCalibration* head = file.add_layers()->add_heads();
  for (v1::TensorCalibration* tensor : {head->mutable_k(), head->mutable_v()}) {
    for (int channel = 0; channel < 64; ++channel) {
      tensor->mutable_channel_order()->push_back(static_cast<char>(channel));
    }
    tensor->set_patterns(std::string(4, '\3'));
  }
  return file.SerializeAsString();
}

class CalibrationFolderTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_.path() + "/" + name, std::ios::binary) << content;
  }
  absl::Status ReadError() {
    return ReadCalibrationFolder(folder_.path(), kBytesMax, &store_).status();
  }

  const TemporaryFolder folder_;
  CalibrationStore store_{8};
};

TEST_F(CalibrationFolderTest, ReadsBinpbFiles) {
  Write("a.binpb", ValidFile("a"));
  Write("b.binpb", ValidFile("b"));
  Write("notes.txt", "not a calibration");
  const absl::StatusOr<int> count = ReadCalibrationFolder(folder_.path(), kBytesMax, &store_);
  ASSERT_TRUE(count.ok()) << count.status();
  EXPECT_EQ(*count, 2);
  EXPECT_EQ(store_.List("any tenant").size(), 2u);
}

TEST_F(CalibrationFolderTest, NamesTheBadFileAndField) {
  Write("good.binpb", ValidFile("a"));
  v1::Calibration bad;
  bad.ParseFromString(ValidFile("b"));
  bad.mutable_layers(0)->mutable_heads(0)->mutable_v()->mutable_channel_order()->at(1) = 0;
  Write("bad.binpb", bad.SerializeAsString());
  const absl::Status status = ReadError();
  EXPECT_TRUE(absl::StrContains(status.message(), "bad.binpb: layers[0].heads[0].v.channel_order"))
      << status;
}

TEST_F(CalibrationFolderTest, RefusesLargeFilesAndMissingFolders) {
  Write("large.binpb", std::string(kBytesMax + 1, 'x'));
  EXPECT_TRUE(absl::StrContains(ReadError().message(), "large.binpb: 10001 bytes")) << ReadError();
  EXPECT_FALSE(ReadCalibrationFolder(folder_.path() + "/none", kBytesMax, &store_).ok());
}

}  // namespace
}  // namespace kvdepot
