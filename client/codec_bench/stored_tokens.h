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
#include "client/codec_bench/segment_set.h"
#include "gpu/calibration.h"

namespace kvdepot {

// `paper_bits` are as the PackKV paper counts: of the codes, and with packkv of each pack's minimum
// and width, but of no scales, tables, orders, directories, headers and padding. Of KIVI the paper
// counts scales and zeros.
struct StoredTensor {
  TensorSize size;
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

// Codecs that the backend does not support are UNIMPLEMENTED.
absl::Status CheckSupport(const CodecSetting& setting, const LayerShape& shape, DType dtype,
                          const Backend& backend);

// `calibrations` may be null unless the setting wants them. Errors as the backend's. The setting is
// supported.
absl::StatusOr<StoredTokens> StoreTokens(const CodecSetting& setting, const BenchLayer& layer,
                                         const ProfileCalibrations* calibrations);

// Mean of q^2 over the layer's queries and the query heads of each KV head: [kv_head][channel].
std::vector<float> QuerySecondMoments(const DumpLayer& layer);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_STORED_TOKENS_H_
