// Why a daemon does not answer, as far as that can be told from here: a pure function of facts.
#ifndef KVDEPOT_CLIENT_CLI_CONNECTION_CHECKS_H_
#define KVDEPOT_CLIENT_CLI_CONNECTION_CHECKS_H_

#include <string>

#include "absl/status/status.h"
#include "client/cli/tls_probe.h"

namespace kvdepot::cli {

struct ConnectionFacts {
  // As flags name them; empty: not named.
  std::string target;
  std::string token_file;
  std::string ca_file;
  std::string cert_file;
  // Of a target that is reached by TCP.
  bool is_tcp = false;
  TlsFacts tls;
};

// `failure` of the first call, with a cure where one is known (finding.h).
absl::Status ExplainFailure(const absl::Status& failure, const ConnectionFacts& facts);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_CONNECTION_CHECKS_H_
