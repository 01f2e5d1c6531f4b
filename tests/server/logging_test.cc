#include "server/logging.h"

#include <spdlog/sinks/ostream_sink.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

TEST(FormatLogFields, QuotesWhereNeeded) {
  EXPECT_EQ(FormatLogFields({{"a", "1"}, {"b", "x:y/z"}}), "a=1 b=x:y/z");
  EXPECT_EQ(FormatLogFields({{"a", ""}, {"b", "two words"}}), "a=\"\" b=\"two words\"");
  EXPECT_EQ(FormatLogFields({{"a", "say \"no\"\\"}}), "a=\"say \\\"no\\\"\\\\\"");
}

TEST(FormatLogFields, NothingCanStartALineOfItsOwn) {
  EXPECT_EQ(FormatLogFields({{"a", "x\nevent=fake\r\x1b"}}), "a=\"x\\nevent=fake\\x0d\\x1b\"");
}

class LogTest : public testing::Test {
 protected:
  std::vector<std::string> Lines() const {
    return absl::StrSplit(out_.str(), '\n', absl::SkipEmpty());
  }

  std::ostringstream out_;
  Log log_{std::make_shared<spdlog::sinks::ostream_sink_mt>(out_)};
};

TEST_F(LogTest, WritesOneLineAnEvent) {
  log_.Info("started", {{"version", "1"}});
  log_.Error("failed", {{"why", "no reason"}});
  ASSERT_EQ(Lines().size(), 2u);
  EXPECT_TRUE(absl::StrContains(Lines()[0], "Z info event=started version=1")) << Lines()[0];
  EXPECT_TRUE(absl::StrContains(Lines()[1], "Z error event=failed why=\"no reason\""))
      << Lines()[1];
}

TEST_F(LogTest, BoundsWhatClientsCause) {
  for (int i = 0; i < 1000; ++i) log_.InfoBounded("refused", {{"i", std::to_string(i)}});
  log_.InfoBounded("slow", {});
  EXPECT_TRUE(absl::StrContains(Lines().back(), "event=slow")) << "another event is not left out";
  // The loop may cross into another second, hardly into a third.
  EXPECT_GE(Lines().size(), static_cast<size_t>(Log::kBoundedLinesPerSecond));
  EXPECT_LE(Lines().size(), 3u * Log::kBoundedLinesPerSecond);
}

}  // namespace
}  // namespace kvdepot
