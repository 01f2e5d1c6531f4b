// Keys, values and queries of layers of a model, as `kvdepot bench codec` reads them: from a
// safetensors file (tests/model/dump_kv.py makes one) with, for each layer L,
//   layers.L.k, layers.L.v  [token][kv_head][channel]
//   layers.L.q              [query][query_head][channel]; may be missing
// after the rotary embedding, all of one dtype: bf16, fp16 or fp32. The queries are those of the
// tokens that follow, so each attends to all tokens.
#ifndef KVDEPOT_CLIENT_CODEC_BENCH_KV_DUMP_H_
#define KVDEPOT_CLIENT_CODEC_BENCH_KV_DUMP_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/kv_arrays.h"
#include "gpu/shape.h"

namespace kvdepot {

struct DumpLayer {
  int number = 0;  // In the model.
  int place = 0;   // Among the dump's layers.
  DType dtype = DType::kBf16;
  LayerShape shape;
  int query_count = 0;
  bool queries_are_drawn = false;  // The dump has none.
  // In `dtype`.
  std::string k;
  std::string v;
  std::string q;
  // The same numbers as k and v.
  KvArrays kv;

  absl::string_view QueryBytes(int query) const {
    const size_t size = q.size() / query_count;
    return absl::string_view(q).substr(query * size, size);
  }
};

struct KvDump {
  std::string model;
  int layer_count = 0;  // Those that were not asked for included.
  std::vector<DumpLayer> layers;
};

struct DumpSelection {
  std::vector<int> layers;  // Numbers in the model; empty: all.
  int tokens = 0;           // The first ones; 0: all.
};

// NOT_FOUND: no such file or layer. INVALID_ARGUMENT naming tensor, value and limit: what is there
// is no dump that a backend can work on. OUT_OF_RANGE: the dump has fewer tokens.
absl::StatusOr<KvDump> LoadKvDump(const std::string& path, const DumpSelection& selection);

// One layer of synthetic_kv.h: to try the tool, never for a statement about accuracy.
KvDump MakeSyntheticDump(const LayerShape& shape, int tokens, int queries);

// Exact. `bytes` holds values of `dtype`.
std::vector<float> FloatsOf(DType dtype, absl::string_view bytes);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_CODEC_BENCH_KV_DUMP_H_
