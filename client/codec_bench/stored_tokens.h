// The sealed tokens of a BenchLayer, stored by one codec: what they take, what they decode to, how
// long encoding and decoding take, and attention over them.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_STORED_TOKENS_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_STORED_TOKENS_H_

#include <array>
#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "client/codec_bench/bench_layer.h"
#include "client/codec_bench/codec_setting.h"
#include "gpu/calibration.h"

namespace kvdepot {

struct StoredTensor {
  // Bits a value as the PackKV paper counts them: of the codes, and with packkv of each pack's
  // minimum and width; no scales, tables, orders, directories, headers and padding. Of KIVI the
  // paper counts scales and zeros.
  double paper_bits = 0;
  // Of K or V alone, and half of what belongs to both.
  double bytes = 0;
  std::vector<float> values;  // [sealed token][kv_head][channel]
};

struct StoredTokens {
  StoredTensor k;
  StoredTensor v;
  // [query][query_head][channel]
  std::vector<float> attention;
  // One a repeat; empty for a reference whose speed says nothing.
  std::vector<double> encode_seconds;
  std::vector<double> decode_seconds;
  int raw_segments = 0;  // Whose values the codec cannot hold.
};

// What the calibration of the layer's model says, one a profile.
using ProfileCalibrations = std::array<LayerCalibration, kProfileCount>;

// `calibrations` may be null unless the setting wants them. Errors as the backend's.
absl::StatusOr<StoredTokens> StoreTokens(const CodecSetting& setting, const BenchLayer& layer,
                                         const ProfileCalibrations* calibrations);

// Mean of q^2 over the layer's queries and the query heads of each KV head: [kv_head][channel].
std::vector<float> QuerySecondMoments(const DumpLayer& layer);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_STORED_TOKENS_H_
