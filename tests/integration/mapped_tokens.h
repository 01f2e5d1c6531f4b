// Tokens and queries of mapped sessions, and the truth about them: the same values by position as
// in tests of the services, attended to in double precision.
#ifndef KVDEPOT_TESTS_INTEGRATION_MAPPED_TOKENS_H_
#define KVDEPOT_TESTS_INTEGRATION_MAPPED_TOKENS_H_

#include <string>
#include <utility>
#include <vector>

#include "client/mapped_session.h"

namespace kvdepot {

// Tokens position .. position + count - 1 of a layer, as Chunk of test_daemon.h.
struct MappedTokens {
  MappedTokens(int layer, int position, int count);
  DenseTokens tokens() const;

  std::string k;
  std::string v;
  int count;
};

// The query of one token, and room for its outputs.
class MappedQuery {
 public:
  explicit MappedQuery(int seed);

  // For MappedStream; `tokens` is null for Attend.
  MappedStream::Query Of(MappedSession* session, const MappedTokens* tokens = nullptr);

  bool is_nan() const;
  // Largest distance of an output or log-sum-exp from the truth over tokens 0 .. token_count - 1.
  double ErrorOver(int layer, int token_count) const;

  const std::string& q() const { return q_; }
  // What somewhere else was computed.
  void Set(std::vector<float> output, std::vector<float> log_sum_exp) {
    output_ = std::move(output);
    log_sum_exp_ = std::move(log_sum_exp);
  }
  const std::vector<float>& output() const { return output_; }
  const std::vector<float>& log_sum_exp() const { return log_sum_exp_; }

 private:
  std::string q_;
  std::vector<float> output_;
  std::vector<float> log_sum_exp_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_MAPPED_TOKENS_H_
