// What `kvdepot bench codec` prints: the means over layers, and which codec takes how much less
// than the KIVI baselines at the same error.
#ifndef KVDEPOT_CLIENT_CLI_CODEC_REPORT_H_
#define KVDEPOT_CLIENT_CLI_CODEC_REPORT_H_

#include <string>
#include <vector>

#include "absl/types/optional.h"
#include "client/codec_bench/codec_setting.h"
#include "client/codec_bench/codec_trial.h"
#include "client/codec_bench/equal_error.h"
#include "google/protobuf/struct.pb.h"

namespace kvdepot::cli {

struct CodecRow {
  CodecSetting setting;
  std::vector<TrialFigures> layers;  // In the order of CodecReport::layers.
};

struct CodecReport {
  std::string model;
  std::string backend;
  int tokens = 0;
  int sealed_tokens = 0;
  LayerShape shape;  // Of the first layer.
  std::vector<int> layers;
  int queries = 0;  // Of each layer.
  bool queries_are_drawn = false;
  double bf16_bytes = 0;  // What the sealed tokens of all layers take in bf16.
  std::vector<CodecRow> rows;
};

// Median of repeats of all layers, and the distance between the quartiles over the median.
struct CodecRate {
  double bytes_per_second = 0;
  double spread = 0;
  int repeats = 0;
};
// `seconds` holds the repeats of each layer. None: nothing was timed.
absl::optional<CodecRate> RateOf(double bytes, const std::vector<std::vector<double>>& seconds);

// Every layer counts the same; rates are not in it.
TrialFigures MeanOverLayers(const std::vector<TrialFigures>& layers);

// Bits of a baseline over the bits that a codec needs for the same attention error: of K where K
// alone is compressed, of V likewise, and of both.
struct EqualError {
  std::string codec;
  std::string baseline;
  absl::optional<SizeRatio> k_ratio;
  absl::optional<SizeRatio> v_ratio;
  absl::optional<SizeRatio> ratio;
};
std::vector<EqualError> EqualErrors(const CodecReport& report);

std::string CodecText(const CodecReport& report);
google::protobuf::Struct CodecJson(const CodecReport& report);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_CODEC_REPORT_H_
