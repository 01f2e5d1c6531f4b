// Real keys, values and queries of one layer of a model, from a safetensors file: `layers.N.k` and
// `layers.N.v` [token][kv_head][channel], `layers.N.q` [query][query_head][channel], all bf16 after
// the rotary embedding. The queries are those of the tokens that follow, so each attends to all
// stored tokens.
#ifndef KVDEPOT_CLIENT_CLI_DEMO_DATA_H_
#define KVDEPOT_CLIENT_CLI_DEMO_DATA_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "client/kv_arrays.h"

namespace kvdepot::cli {

struct DemoData {
  std::string model;
  int layer = 0;  // In the model; the demo's session has this one layer.
  int query_count = 0;
  int query_heads = 0;
  // bf16 bytes, as they are sent.
  std::string k;
  std::string v;
  std::string q;
  // The same numbers.
  KvArrays kv;

  absl::string_view QueryBytes(int query) const;
};

// The first layer in the file. INVALID_ARGUMENT where the tensors do not fit each other.
absl::StatusOr<DemoData> LoadDemoData(const std::string& path);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_DEMO_DATA_H_
