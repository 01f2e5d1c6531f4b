// Means, rates and the comparison of a report; bench_codec_test.py has the figures themselves.
#include "client/cli/codec_report.h"

#include "gtest/gtest.h"

namespace kvdepot::cli {
namespace {

TrialFigures Figures(double bits, double error) {
  TrialFigures figures;
  figures.bits = figures.k.bits = figures.v.bits = bits;
  figures.attention_error = error;
  figures.k.attention_error = error / 2;
  figures.v.attention_error = error / 4;
  return figures;
}

CodecReport Report() {
  CodecReport report;
  report.model = "M";
  report.layers = {2, 23};
  report.shape = {2, 4, 64, 0, 0};
  report.rows = {
      {{"planes", "tiny", PlanesSetting{}}, {Figures(1, 0.3), Figures(2, 0.5)}},
      {{"planes", "fine", PlanesSetting{}}, {Figures(3, 0.1), Figures(4, 0.1)}},
      {{"kivi", "2-bit", KiviSetting{2}}, {Figures(3, 0.2), Figures(3, 0.2)}},
  };
  return report;
}

TEST(CodecReportTest, EveryLayerCountsTheSame) {
  const TrialFigures mean = MeanOverLayers(Report().rows[0].layers);
  EXPECT_DOUBLE_EQ(mean.bits, 1.5);
  EXPECT_DOUBLE_EQ(mean.attention_error, 0.4);
  EXPECT_DOUBLE_EQ(mean.k.attention_error, 0.2);
}

TEST(CodecReportTest, RateIsTheMedianOfWholeRepeats) {
  const auto rate = RateOf(12, {{1, 2, 9}, {1, 2, 9, 100}});
  ASSERT_TRUE(rate.has_value());
  EXPECT_DOUBLE_EQ(rate->bytes_per_second, 3);
  EXPECT_EQ(rate->repeats, 3);
  EXPECT_DOUBLE_EQ(rate->spread, (18.0 - 2.0) / 4);
  EXPECT_FALSE(RateOf(12, {{1}, {}}).has_value());
}

// At the baseline's error the codec is halfway, in logarithms, between its two points.
TEST(CodecReportTest, ComparesAtEqualError) {
  const std::vector<EqualError> errors = EqualErrors(Report());
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_EQ(errors[0].codec, "planes");
  EXPECT_EQ(errors[0].baseline, "kivi 2-bit");
  ASSERT_TRUE(errors[0].ratio.has_value());
  EXPECT_NEAR(errors[0].ratio->ratio, 3 / 2.5, 1e-12);
}

TEST(CodecReportTest, TextMarksWhatIsNotBeaten) {
  const std::string text = CodecText(Report());
  EXPECT_NE(text.find("M, layers 2, 23"), std::string::npos) << text;
  EXPECT_NE(text.find("*\n"), std::string::npos) << text;
}

TEST(CodecReportTest, JsonLeavesOutWhatWasNotMeasured) {
  const google::protobuf::Struct json = CodecJson(Report());
  const auto& rows = json.fields().at("rows").list_value();
  ASSERT_EQ(rows.values_size(), 3);
  const auto& row = rows.values(0).struct_value().fields();
  EXPECT_EQ(row.count("encode_bytes_per_second"), 0u);
  EXPECT_EQ(row.at("by_layer").list_value().values_size(), 2);
  EXPECT_DOUBLE_EQ(row.at("bits").number_value(), 1.5);
}

}  // namespace
}  // namespace kvdepot::cli
