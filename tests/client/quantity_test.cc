#include "client/cli/quantity.h"

#include "client/latency_summary.h"
#include "client/table.h"
#include "gtest/gtest.h"

namespace kvdepot::cli {
namespace {

TEST(QuantityTest, UnitsChangeWithSize) {
  EXPECT_EQ(BytesText(0), "0 B");
  EXPECT_EQ(BytesText(1023), "1023 B");
  EXPECT_EQ(BytesText(1536), "1.5 KiB");
  EXPECT_EQ(BytesText(uint64_t{12} << 30), "12 GiB");
  EXPECT_EQ(RateText(1.5e9), "1500 MB/s");
  EXPECT_EQ(DurationText(absl::Microseconds(12)), "12 us");
  EXPECT_EQ(DurationText(absl::Microseconds(1320)), "1.32 ms");
  EXPECT_EQ(DurationText(absl::Milliseconds(2500)), "2.5 s");
  EXPECT_EQ(CountText(0), "0");
  EXPECT_EQ(CountText(999), "999");
  EXPECT_EQ(CountText(1234567), "1,234,567");
}

TEST(QuantityTest, EnumerationsLoseTheirPrefix) {
  EXPECT_EQ(EnumText(v1::PROFILE_COMPACT), "compact");
  EXPECT_EQ(EnumText(v1::CODEC_PLANES), "planes");
  EXPECT_EQ(EnumText(v1::DTYPE_BF16), "bf16");
  EXPECT_EQ(EnumText(v1::PACK_KV_REPACKING_GREEDY), "greedy");
  EXPECT_EQ(EnumText(static_cast<v1::Codec>(99)), "unknown");
}

TEST(LatencySummaryTest, PercentilesAreValuesThatOccurred) {
  std::vector<absl::Duration> latencies;
  for (int i = 100; i >= 1; --i) latencies.push_back(absl::Milliseconds(i));
  const LatencySummary summary = Summarize(latencies);
  EXPECT_EQ(summary.p50, absl::Milliseconds(50));
  EXPECT_EQ(summary.p99, absl::Milliseconds(99));
  EXPECT_EQ(summary.mean, absl::Microseconds(50500));
  EXPECT_EQ(Summarize({absl::Seconds(1)}).p99, absl::Seconds(1));
}

TEST(TableTest, AlignsColumns) {
  Table table({{"NAME"}, {"SIZE", Table::Align::kRight}, {"NOTE"}});
  table.AddRow({"a", "1", ""});
  table.AddRow({"bcdef", "1234", "x"});
  EXPECT_EQ(table.ToString(),
            "NAME   SIZE  NOTE\n"
            "a         1\n"
            "bcdef  1234  x\n");
}

TEST(TableTest, WithoutTitlesThereIsNoTitleLine) {
  Table table({{""}, {""}});
  table.AddRow({"ü", "1"});
  table.AddRow({"ab", "2"});
  EXPECT_EQ(table.ToString(), "ü   1\nab  2\n");
}

}  // namespace
}  // namespace kvdepot::cli
