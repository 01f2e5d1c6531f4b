#include "client/cli/demo_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/json.h"
#include "client/cli/quantity.h"
#include "client/kivi_reference.h"
#include "client/table.h"

namespace kvdepot::cli {

std::vector<std::string> DemoResult::MissedBounds() const {
  std::vector<std::string> missed;
  // Written so that a value that is no number misses its bound.
  if (!(bits_per_value <= kBitsPerValueMax)) {
    missed.push_back(
        absl::StrFormat("bits_per_value %.3f is above %.2f", bits_per_value, kBitsPerValueMax));
  }
  if (!(relative_error <= reference_relative_error)) {
    missed.push_back(absl::StrFormat("relative_error %.4f is above reference_relative_error %.4f",
                                     relative_error, reference_relative_error));
  }
  return missed;
}

std::string DemoText(const DemoResult& result) {
  Table table({{""}, {""}});
  table.AddRow({"data", result.data});
  table.AddRow({"backend", result.backend});
  table.AddRow({"tokens", CountText(result.tokens)});
  table.AddRow({"bits per value", absl::StrFormat("%.3f all in", result.bits_per_value)});
  table.AddRow({"ratio to bf16", absl::StrFormat("%.2f", result.ratio)});
  table.AddRow(
      {"error against exact attention",
       absl::StrFormat("%.4f, mean of %d queries", result.relative_error, result.error_queries)});
  table.AddRow({"the same of a 2-bit reference",
                absl::StrFormat("%.4f at %.3f bits (in the manner of KIVI, groups of %d)",
                                result.reference_relative_error, result.reference_bits_per_value,
                                kKiviGroup)});
  table.AddRow({"append", RateText(result.append_bytes_per_second)});
  table.AddRow({"attend", absl::StrCat("p50 ", DurationText(result.attend_p50), ", p99 ",
                                       DurationText(result.attend_p99))});
  table.AddRow({"metrics", result.metrics_url.empty() ? "switched off" : result.metrics_url});
  return table.ToString();
}

google::protobuf::Struct DemoJson(const DemoResult& result) {
  google::protobuf::Struct object;
  SetText("data", result.data, &object);
  SetText("backend", result.backend, &object);
  SetText("session", result.session_name, &object);
  SetNumber("tokens", result.tokens, &object);
  SetNumber("error_queries", result.error_queries, &object);
  SetNumber("bits_per_value", result.bits_per_value, &object);
  SetNumber("ratio", result.ratio, &object);
  SetNumber("relative_error", result.relative_error, &object);
  SetNumber("reference_bits_per_value", result.reference_bits_per_value, &object);
  SetNumber("reference_relative_error", result.reference_relative_error, &object);
  SetNumber("append_bytes_per_second", result.append_bytes_per_second, &object);
  SetNumber("attend_p50_seconds", absl::ToDoubleSeconds(result.attend_p50), &object);
  SetNumber("attend_p99_seconds", absl::ToDoubleSeconds(result.attend_p99), &object);
  SetText("metrics_url", result.metrics_url, &object);
  google::protobuf::ListValue* missed = SetList("missed_bounds", &object);
  for (const std::string& bound : result.MissedBounds()) {
    missed->add_values()->set_string_value(bound);
  }
  return object;
}

}  // namespace kvdepot::cli
