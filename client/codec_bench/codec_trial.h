// One codec at one setting on one layer: figures.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_CODEC_TRIAL_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_CODEC_TRIAL_H_

#include <vector>

#include "absl/status/statusor.h"
#include "client/codec_bench/stored_tokens.h"
#include "gpu/worker_pool.h"

namespace kvdepot {

// Errors are relative: root mean square of the difference over that of the exact numbers.
struct TensorFigures {
  double paper_bits = 0;  // As StoredTensor.
  double bits = 0;        // All in.
  double error = 0;       // Of the values.
  // Of the attention output where this tensor alone is compressed, the other exact.
  double attention_error = 0;
};

struct TrialFigures {
  TensorFigures k;
  TensorFigures v;
  // Bits a value of sealed tokens, everything in their segments counted, and of the whole session:
  // with exact sinks and tail at this length.
  double bits = 0;
  double session_bits = 0;
  double attention_error = 0;
  // Mean over queries and heads of |output - exact| / |exact|, as tests/golden/evaluate.py and the
  // demo have it.
  double attention_error_mean = 0;
  std::vector<double> encode_seconds;
  std::vector<double> decode_seconds;
  int raw_segments = 0;
};

// Attention of the layer's asked queries by exact_attention.h: [query][query_head][channel].
std::vector<double> ExactOutputs(const BenchLayer& layer, WorkerPool* pool);

// Errors as StoreTokens.
absl::StatusOr<TrialFigures> TryCodec(const CodecSetting& setting, const BenchLayer& layer,
                                      const ProfileCalibrations* calibrations,
                                      const std::vector<double>& exact_outputs);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_CODEC_TRIAL_H_
