// Names follow Prometheus' conventions, and every series is there with a zero before any traffic.
#include "server/metrics.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

// Series with labels, as written, and their values.
std::map<std::string, double> Series(const Metrics& metrics) {
  std::map<std::string, double> series;
  for (const absl::string_view line : absl::StrSplit(metrics.Text(), '\n', absl::SkipEmpty())) {
    if (line[0] == '#') continue;
    const size_t space = line.rfind(' ');
    double value = -1;
    EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
    series[std::string(line.substr(0, space))] = value;
  }
  return series;
}

// Family name -> type.
std::map<std::string, std::string> Types(const Metrics& metrics) {
  std::map<std::string, std::string> types;
  for (const absl::string_view line : absl::StrSplit(metrics.Text(), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words[0] == "#" && words[1] == "TYPE") types[words[2]] = words[3];
  }
  return types;
}

TEST(Metrics, EverySeriesIsThereBeforeTraffic) {
  const Metrics metrics;
  const auto series = Series(metrics);
  for (const auto& [name, value] : series) EXPECT_EQ(value, 0) << name;
  for (const char* name :
       {"kvdepot_start_time_seconds",
        "kvdepot_memory_budget_bytes",
        "kvdepot_memory_used_bytes",
        "kvdepot_memory_slab_bytes",
        "kvdepot_memory_slab_unused_bytes",
        "kvdepot_sessions",
        "kvdepot_leases",
        "kvdepot_mapped_bytes",
        "kvdepot_directory_versions_held_back",
        "kvdepot_mapped_reclaimed_bytes_total",
        "kvdepot_rpc_started_total{method=\"Decode\"}",
        "kvdepot_rpc_handled_total{code=\"OK\",method=\"Append\"}",
        "kvdepot_rpc_handled_total{code=\"RESOURCE_EXHAUSTED\",method=\"Fetch\"}",
        "kvdepot_operation_duration_seconds_count{operation=\"attend\",stage=\"kernel\"}",
        "kvdepot_appended_tokens_total",
        "kvdepot_sealed_tokens_total{codec=\"planes\"}",
        "kvdepot_sealed_logical_bytes_total{codec=\"raw\"}",
        "kvdepot_sealed_stored_bytes_total{codec=\"raw\"}",
        "kvdepot_seals_deferred_total",
        "kvdepot_seal_lag_seconds_count",
        "kvdepot_mapping_errors_total{code=\"INTERNAL\",operation=\"export\"}",
        "kvdepot_mapping_errors_total{code=\"NOT_FOUND\",operation=\"attach\"}",
        "kvdepot_reconstruction_error_ratio_count{kind=\"k\"}",
        "kvdepot_rejections_total{reason=\"budget_bytes\"}"}) {
    EXPECT_EQ(series.count(name), 1u) << name;
  }
}

TEST(Metrics, NamesFollowTheConventions) {
  const Metrics metrics;
  for (const auto& [name, type] : Types(metrics)) {
    EXPECT_TRUE(absl::StartsWith(name, "kvdepot_")) << name;
    EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz_"), std::string::npos) << name;
    EXPECT_EQ(type == "counter", absl::EndsWith(name, "_total")) << name;
    if (type == "histogram") {
      EXPECT_TRUE(absl::EndsWith(name, "_seconds") || absl::EndsWith(name, "_ratio")) << name;
    }
  }
}

TEST(Metrics, LatencyBucketsStartAtTenMicroseconds) {
  Metrics metrics;
  metrics.OnOperation(Operation::kAttend, absl::StatusCode::kOk,
                      {absl::Microseconds(9), absl::Microseconds(15), absl::Microseconds(24)});
  const auto series = Series(metrics);
  const auto bucket = [&](const char* stage, const char* bound) {
    return series.at(
        absl::StrCat("kvdepot_operation_duration_seconds_bucket{operation=\"attend\",stage=\"",
                     stage, "\",le=\"", bound, "\"}"));
  };
  EXPECT_EQ(bucket("queue", "1e-05"), 1);
  EXPECT_EQ(bucket("kernel", "1e-05"), 0);
  EXPECT_EQ(bucket("kernel", "2e-05"), 1);
  EXPECT_EQ(bucket("total", "5e-05"), 1);
}

TEST(Metrics, CountsCallsAndRejections) {
  Metrics metrics;
  const auto handle = [&](const absl::Status& status) {
    metrics.OnRpcStarted(RpcMethod::kAppend);
    metrics.OnRpcHandled(RpcMethod::kAppend, status);
  };
  handle(absl::OkStatus());
  handle(absl::InvalidArgumentError("chunk.k: bad"));
  handle(absl::ResourceExhaustedError("budget_bytes: used up"));
  handle(absl::ResourceExhaustedError("no name"));
  handle(absl::UnavailableError("session_id: in use"));
  handle(absl::UnavailableError("draining: no new work"));
  const auto series = Series(metrics);
  EXPECT_EQ(series.at("kvdepot_rpc_started_total{method=\"Append\"}"), 6);
  EXPECT_EQ(series.at("kvdepot_rpc_handled_total{code=\"UNAVAILABLE\",method=\"Append\"}"), 2);
  EXPECT_EQ(series.at("kvdepot_rpc_handled_total{code=\"OK\",method=\"Append\"}"), 1);
  for (const char* reason : {"budget_bytes", "other", "session_busy", "draining"}) {
    EXPECT_EQ(series.at(absl::StrCat("kvdepot_rejections_total{reason=\"", reason, "\"}")), 1)
        << reason;
  }
}

TEST(Metrics, TellsWhatTheEngineDid) {
  Metrics metrics;
  metrics.SetBuildInfo({"1.2.3", "cpu", "A CPU", 0xAB, absl::FromUnixSeconds(50)});
  metrics.SetUsage({1000, 10, 64, 54, 3, {{{40, 41}, {50, 7}, {60, 8}}}, {2, 128, 5}, 77});
  metrics.OnAppended(5);
  metrics.OnSealed({Codec::kPlanes, 64, 1000, 140, absl::Milliseconds(30)});
  metrics.OnSealDeferred();
  metrics.OnMappingError(MappingOperation::kSend, absl::StatusCode::kUnavailable);
  metrics.OnReconstructionError(.2, .3);
  const auto series = Series(metrics);
  EXPECT_EQ(
      series.at("kvdepot_build_info{backend=\"cpu\",device=\"A CPU\",epoch=\"00000000000000ab\","
                "version=\"1.2.3\"}"),
      1);
  EXPECT_EQ(series.at("kvdepot_start_time_seconds"), 50);
  EXPECT_EQ(series.at("kvdepot_memory_budget_bytes"), 1000);
  EXPECT_EQ(series.at("kvdepot_memory_used_bytes"), 10);
  EXPECT_EQ(series.at("kvdepot_memory_slab_bytes"), 64);
  EXPECT_EQ(series.at("kvdepot_memory_slab_unused_bytes"), 54);
  EXPECT_EQ(series.at("kvdepot_leases"), 2);
  EXPECT_EQ(series.at("kvdepot_mapped_bytes"), 128);
  EXPECT_EQ(series.at("kvdepot_directory_versions_held_back"), 5);
  EXPECT_EQ(series.at("kvdepot_mapped_reclaimed_bytes_total"), 77);
  EXPECT_EQ(series.at("kvdepot_sessions"), 3);
  EXPECT_EQ(series.at("kvdepot_session_logical_bytes{codec=\"raw\"}"), 40);
  EXPECT_EQ(series.at("kvdepot_session_stored_bytes{codec=\"planes\"}"), 7);
  EXPECT_EQ(series.at("kvdepot_session_stored_bytes{codec=\"packkv\"}"), 8);
  EXPECT_EQ(series.at("kvdepot_appended_tokens_total"), 5);
  EXPECT_EQ(series.at("kvdepot_sealed_segments_total{codec=\"planes\"}"), 1);
  EXPECT_EQ(series.at("kvdepot_sealed_tokens_total{codec=\"planes\"}"), 64);
  EXPECT_EQ(series.at("kvdepot_sealed_logical_bytes_total{codec=\"planes\"}"), 1000);
  EXPECT_EQ(series.at("kvdepot_sealed_stored_bytes_total{codec=\"planes\"}"), 140);
  EXPECT_EQ(series.at("kvdepot_sealed_tokens_total{codec=\"raw\"}"), 0);
  EXPECT_EQ(series.at("kvdepot_sealed_tokens_total{codec=\"packkv\"}"), 0);
  EXPECT_EQ(series.at("kvdepot_seals_deferred_total"), 1);
  EXPECT_EQ(series.at("kvdepot_seal_lag_seconds_sum"), .03);
  EXPECT_EQ(series.at("kvdepot_seal_lag_seconds_bucket{le=\"0.02\"}"), 0);
  EXPECT_EQ(series.at("kvdepot_seal_lag_seconds_bucket{le=\"0.05\"}"), 1);
  EXPECT_EQ(series.at("kvdepot_mapping_errors_total{code=\"UNAVAILABLE\",operation=\"send\"}"), 1);
  EXPECT_EQ(series.at("kvdepot_mapping_errors_total{code=\"INTERNAL\",operation=\"send\"}"), 0);
  EXPECT_EQ(series.at("kvdepot_reconstruction_error_ratio_sum{kind=\"v\"}"), .3);
}

}  // namespace
}  // namespace kvdepot
