// Attention in double precision by the textbook formula: the truth that `kvdepot demo` and `kvdepot
// doctor` compare the daemon with. Slow on purpose: no blocking, no running maximum, nothing shared
// with the code under test.
#ifndef KVDEPOT_CLIENT_EXACT_ATTENTION_H_
#define KVDEPOT_CLIENT_EXACT_ATTENTION_H_

#include <vector>

#include "absl/types/span.h"
#include "client/kv_arrays.h"

namespace kvdepot {

struct ExactOutput {
  std::vector<double> output;       // [query_head][channel]
  std::vector<double> log_sum_exp;  // [query_head]
};

// One query token that sees all of `kv` (at least one token). `q` is [query_head][channel]; the
// number of query heads follows from its length and is a multiple of kv.kv_heads. Query head h
// reads KV head h / (query_heads / kv_heads).
ExactOutput ExactAttention(const KvArrays& kv, absl::Span<const float> q, double scale);

// Mean over heads of |output - exact| / |exact|, lengths taken over the head's channels.
double RelativeError(absl::Span<const float> output, absl::Span<const double> exact, int head_dim);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_EXACT_ATTENTION_H_
