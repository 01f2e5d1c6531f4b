// Keys, values and queries that look enough like a model's to exercise a daemon: for `bench` and
// `doctor`, never for a statement about accuracy.
//
// Each channel has its own mean, and each channel of K its own spread, as keys do whose projection
// has a bias; queries are plain normal numbers. The same seed gives the same bytes.
#ifndef KVDEPOT_CLIENT_SYNTHETIC_KV_H_
#define KVDEPOT_CLIENT_SYNTHETIC_KV_H_

#include <cstdint>
#include <string>

namespace kvdepot {

// bf16 bytes of one layer: k and v [token][kv_head][channel], q [query token][query_head][channel].
struct SyntheticKv {
  std::string k;
  std::string v;
  std::string q;
};

struct SyntheticShape {
  int token_count = 0;
  int query_count = 0;
  int kv_heads = 0;
  int query_heads = 0;
  int head_dim = 0;
};

SyntheticKv MakeSyntheticKv(const SyntheticShape& shape, uint64_t seed);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_SYNTHETIC_KV_H_
