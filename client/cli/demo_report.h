// What the demo measured, which bounds it states, and how both are printed.
#ifndef KVDEPOT_CLIENT_CLI_DEMO_REPORT_H_
#define KVDEPOT_CLIENT_CLI_DEMO_REPORT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "google/protobuf/struct.pb.h"

namespace kvdepot::cli {

// Of the profile `compact` at 4,096 tokens, all in.
inline constexpr double kBitsPerValueMax = 2.60;

struct DemoResult {
  std::string data;     // What was stored, in words.
  std::string backend;  // "cpu (AMD EPYC ...)".
  std::string session_name;
  int tokens = 0;
  int error_queries = 0;
  double bits_per_value = 0;
  double ratio = 0;
  double relative_error = 0;
  double reference_bits_per_value = 0;
  double reference_relative_error = 0;
  double append_bytes_per_second = 0;
  absl::Duration attend_p50;
  absl::Duration attend_p99;
  std::string metrics_url;  // Empty: switched off.

  // One sentence for each stated bound that is missed.
  std::vector<std::string> MissedBounds() const;
};

std::string DemoText(const DemoResult& result);
google::protobuf::Struct DemoJson(const DemoResult& result);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_DEMO_REPORT_H_
