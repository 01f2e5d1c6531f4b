#include "client/cli/connection_checks.h"

#include "absl/strings/str_cat.h"
#include "client/cli/finding.h"

namespace kvdepot::cli {
namespace {

absl::Status ExplainToken(const ConnectionFacts& facts) {
  if (facts.token_file.empty()) {
    return Misconfigured("the daemon wants a token, and none was sent",
                         "name the file that holds this tenant's: --token_file=FILE");
  }
  return Misconfigured(
      absl::StrCat("the daemon does not know the token in ", facts.token_file,
                   ": it was taken back, or its line is not in the daemon's tokens_file"),
      absl::StrCat("let the daemon's tokens_file have a line of the tenant and what this prints: ",
                   "tr -d '[:space:]' <", facts.token_file,
                   " | sha256sum; the daemon reads it again by itself"));
}

absl::Status ExplainTls(const absl::Status& failure, const ConnectionFacts& facts) {
  const TlsFacts& tls = facts.tls;
  if (!tls.connect_error.empty()) {
    return Misconfigured(
        absl::StrCat("nobody can be reached at ", facts.target, ": ", tls.connect_error),
        "look whether --listen of the daemon names that port, on an address that is seen from "
        "here, and what lies between");
  }
  if (!tls.speaks_tls) {
    return Misconfigured(
        absl::StrCat("what listens at ", facts.target, " does not speak TLS, as a daemon does"),
        "name the port of the daemon's --listen; that of --metrics_address is another");
  }
  if (facts.ca_file.empty()) {
    return Misconfigured(absl::StrCat(facts.target, " speaks TLS, and this call was made without"),
                         "name the authority of the daemon's certificate: --ca_file=FILE");
  }
  if (tls.has_expired) {
    return Misconfigured(
        absl::StrCat("the certificate of ", facts.target, " has expired (", tls.names, ")"),
        "renew the daemon's tls_cert_file and tls_key_file; it reads them again by itself");
  }
  if (tls.is_of_another_host) {
    return Misconfigured(
        absl::StrCat("the certificate of ", facts.target, " is for ",
                     tls.names.empty() ? "no host" : tls.names),
        "name one of those in --target, or have a certificate issued whose subjectAltName has this "
        "one");
  }
  if (!tls.untrusted.empty()) {
    return Misconfigured(
        absl::StrCat("the certificate of ", facts.target, " is not by an authority in ",
                     facts.ca_file, ": ", tls.untrusted),
        "name the file of the authority that issued the daemon's tls_cert_file: --ca_file=FILE");
  }
  if (!tls.refusal.empty()) {
    return Misconfigured(
        facts.cert_file.empty()
            ? absl::StrCat("the daemon wants a certificate of its clients, and none was shown: ",
                           tls.refusal)
            : absl::StrCat("the daemon refuses the certificate in ", facts.cert_file, ": ",
                           tls.refusal),
        "show a valid one by an authority in the daemon's tls_client_ca_file: --cert_file=FILE "
        "--key_file=FILE");
  }
  return failure;
}

}  // namespace

absl::Status ExplainFailure(const absl::Status& failure, const ConnectionFacts& facts) {
  if (absl::IsUnauthenticated(failure)) return ExplainToken(facts);
  if (facts.is_tcp && (absl::IsUnavailable(failure) || absl::IsDeadlineExceeded(failure))) {
    return ExplainTls(failure, facts);
  }
  return failure;
}

}  // namespace kvdepot::cli
