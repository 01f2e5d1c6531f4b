// What listens at a TCP address, and why TLS with it fails: gRPC says no more than that it does.
#ifndef KVDEPOT_CLIENT_CLI_TLS_PROBE_H_
#define KVDEPOT_CLIENT_CLI_TLS_PROBE_H_

#include <string>

#include "absl/time/time.h"

namespace kvdepot::cli {

struct TlsFacts {
  // Why no connection is accepted there; empty: one is.
  std::string connect_error;
  bool speaks_tls = false;
  // Of the certificate that is shown there: why this host's name and the authority do not vouch for
  // it, empty: they do; what is wrong in particular; and the names in it, "DNS:a, IP:127.0.0.1".
  std::string untrusted;
  bool has_expired = false;
  bool is_of_another_host = false;
  std::string names;
  // What is said there against this client's certificate; empty: nothing.
  std::string refusal;
};

// In PEM; empty: none.
struct TlsIdentity {
  std::string authorities;
  std::string certificate;
  std::string key;
};

// Connects to `address`, host:port as gRPC takes it, and sends no request. Returns by `deadline`.
TlsFacts ProbeTls(const std::string& address, const TlsIdentity& identity, absl::Time deadline);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_TLS_PROBE_H_
