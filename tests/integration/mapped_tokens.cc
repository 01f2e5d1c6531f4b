#include "tests/integration/mapped_tokens.h"

#include <algorithm>
#include <cmath>

#include "client/exact_attention.h"
#include "client/kv_arrays.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {

MappedTokens::MappedTokens(int layer, int position, int token_count) : count(token_count) {
  const v1::TokenChunk chunk = Chunk(layer, position, token_count);
  k = chunk.k();
  v = chunk.v();
}

DenseTokens MappedTokens::tokens() const {
  return {reinterpret_cast<const std::byte*>(k.data()),
          reinterpret_cast<const std::byte*>(v.data()), count};
}

MappedQuery::MappedQuery(int seed)
    : q_(Queries(seed, 1).q()), output_(kQueryValues), log_sum_exp_(kQueryHeads) {}

MappedStream::Query MappedQuery::Of(MappedSession* session, const MappedTokens* tokens) {
  MappedStream::Query query;
  query.session = session;
  if (tokens != nullptr) query.tokens = tokens->tokens();
  query.query_tokens = 1;
  query.q = reinterpret_cast<const std::byte*>(q_.data());
  query.output = output_.data();
  query.log_sum_exp = log_sum_exp_.data();
  return query;
}

bool MappedQuery::is_nan() const {
  const auto nan = [](float value) { return std::isnan(value); };
  return std::all_of(output_.begin(), output_.end(), nan) &&
         std::all_of(log_sum_exp_.begin(), log_sum_exp_.end(), nan);
}

double MappedQuery::ErrorOver(int layer, int token_count) const {
  const MappedTokens all(layer, 0, token_count);
  KvArrays kv;
  kv.token_count = token_count;
  kv.kv_heads = kKvHeads;
  kv.head_dim = kHeadDim;
  kv.k = Floats(all.k);
  kv.v = Floats(all.v);
  const ExactOutput exact = ExactAttention(kv, Floats(q_), 1 / std::sqrt(double{kHeadDim}));
  double error = 0;
  // A NaN must not pass for small.
  const auto add = [&error](double a, double b) {
    error = std::isnan(a) ? INFINITY : std::max(error, std::abs(a - b));
  };
  for (size_t i = 0; i < output_.size(); ++i) add(output_[i], exact.output[i]);
  for (size_t i = 0; i < log_sum_exp_.size(); ++i) add(log_sum_exp_[i], exact.log_sum_exp[i]);
  return error;
}

}  // namespace kvdepot
