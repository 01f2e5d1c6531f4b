#include "client/cli/tls_probe.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "gpu/file_descriptor.h"

namespace kvdepot::cli {
namespace {

// OpenSSL writes to sockets that the other side has closed, which would end the process.
class WithoutSigpipe {
 public:
  WithoutSigpipe() : before_(signal(SIGPIPE, SIG_IGN)) {}
  ~WithoutSigpipe() { signal(SIGPIPE, before_); }
  WithoutSigpipe(const WithoutSigpipe&) = delete;
  WithoutSigpipe& operator=(const WithoutSigpipe&) = delete;

 private:
  void (*const before_)(int);
};

template <typename Type>
using Owned = std::unique_ptr<Type, void (*)(Type*)>;

struct HostPort {
  std::string host;
  std::string port;
};

HostPort SplitAddress(absl::string_view address) {
  for (const absl::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&address, scheme)) break;
  }
  absl::ConsumePrefix(&address, "///");
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return {std::string(address), "443"};
  absl::string_view host = address.substr(0, colon);
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");
  return {std::string(host), std::string(address.substr(colon + 1))};
}

// Blocking, with the time that is left for each step.
void LimitTime(int socket, absl::Time deadline) {
  const timeval left =
      absl::ToTimeval(std::max(deadline - absl::Now(), absl::Duration(absl::Milliseconds(1))));
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &left, sizeof(left));
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &left, sizeof(left));
}

FileDescriptor Connect(const HostPort& to, absl::Time deadline, std::string* error) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int problem = getaddrinfo(to.host.c_str(), to.port.c_str(), &hints, &found);
  if (problem != 0) {
    *error = gai_strerror(problem);
    return FileDescriptor();
  }
  const Owned<addrinfo> addresses(found, &freeaddrinfo);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    FileDescriptor socket(::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) continue;
    LimitTime(socket.get(), deadline);
    if (connect(socket.get(), each->ai_addr, each->ai_addrlen) == 0) {
      error->clear();
      return socket;
    }
    *error = errno == EINPROGRESS ? "no answer" : std::strerror(errno);
  }
  return FileDescriptor();
}

Owned<BIO> Memory(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())),
          [](BIO* bio) { BIO_free(bio); }};
}

Owned<X509> ReadCertificate(BIO* from) {
  return {PEM_read_bio_X509(from, nullptr, nullptr, nullptr), &X509_free};
}

void Use(const TlsIdentity& identity, SSL_CTX* context) {
  const Owned<BIO> authorities = Memory(identity.authorities);
  while (const Owned<X509> authority = ReadCertificate(authorities.get())) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get());
  }
  const Owned<BIO> certificates = Memory(identity.certificate);
  if (const Owned<X509> own = ReadCertificate(certificates.get())) {
    SSL_CTX_use_certificate(context, own.get());
  }
  while (const Owned<X509> above = ReadCertificate(certificates.get())) {
    SSL_CTX_add1_chain_cert(context, above.get());
  }
  const Owned<BIO> key_file = Memory(identity.key);
  const Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(key_file.get(), nullptr, nullptr, nullptr),
                            &EVP_PKEY_free);
  if (key != nullptr) SSL_CTX_use_PrivateKey(context, key.get());
  ERR_clear_error();
}

std::string NamesIn(X509* certificate) {
  const Owned<GENERAL_NAMES> names(static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(
                                       certificate, NID_subject_alt_name, nullptr, nullptr)),
                                   &GENERAL_NAMES_free);
  std::vector<std::string> texts;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    const auto bytes = [](const ASN1_STRING* value) {
      return absl::string_view(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                               static_cast<size_t>(ASN1_STRING_length(value)));
    };
    if (name->type == GEN_DNS) texts.push_back(absl::StrCat("DNS:", bytes(name->d.dNSName)));
    if (name->type == GEN_IPADD) {
      const absl::string_view address = bytes(name->d.iPAddress);
      char text[INET6_ADDRSTRLEN] = "?";
      inet_ntop(address.size() == 4 ? AF_INET : AF_INET6, address.data(), text, sizeof(text));
      texts.push_back(absl::StrCat("IP:", text));
    }
  }
  return absl::StrJoin(texts, ", ");
}

// Of the last step that failed; empty: it was no message of the other side.
std::string Alert() {
  const unsigned long error = ERR_peek_last_error();  // NOLINT(google-runtime-int)
  ERR_clear_error();
  if (ERR_GET_LIB(error) != ERR_LIB_SSL || ERR_GET_REASON(error) < SSL_AD_REASON_OFFSET) return "";
  const char* const reason = ERR_reason_error_string(error);
  return reason == nullptr ? "an alert" : reason;
}

void JudgeCertificate(const SSL* ssl, TlsFacts* facts) {
  const Owned<X509> certificate(SSL_get1_peer_certificate(ssl), &X509_free);
  if (certificate != nullptr) facts->names = NamesIn(certificate.get());
  const long verdict = SSL_get_verify_result(ssl);  // NOLINT(google-runtime-int)
  if (verdict == X509_V_OK) return;
  facts->untrusted = X509_verify_cert_error_string(verdict);
  facts->has_expired = verdict == X509_V_ERR_CERT_HAS_EXPIRED;
  facts->is_of_another_host =
      verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH;
}

}  // namespace

TlsFacts ProbeTls(const std::string& address, const TlsIdentity& identity, absl::Time deadline) {
  TlsFacts facts;
  const HostPort to = SplitAddress(address);
  const FileDescriptor socket = Connect(to, deadline, &facts.connect_error);
  if (!socket) return facts;

  const WithoutSigpipe without_sigpipe;
  const Owned<SSL_CTX> context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  // The handshake goes on with a certificate that is not trusted, which is what is looked at.
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_NONE, nullptr);
  Use(identity, context.get());
  const Owned<SSL> ssl(SSL_new(context.get()), &SSL_free);
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(ssl.get(), kHttp2, sizeof(kHttp2));
  if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl.get()), to.host.c_str()) != 1) {
    SSL_set1_host(ssl.get(), to.host.c_str());
    SSL_set_tlsext_host_name(ssl.get(), to.host.c_str());
  }
  SSL_set_fd(ssl.get(), socket.get());
  LimitTime(socket.get(), deadline);
  ERR_clear_error();
  if (SSL_connect(ssl.get()) != 1) {
    facts.refusal = Alert();
    facts.speaks_tls = !facts.refusal.empty();
    return facts;
  }
  facts.speaks_tls = true;
  JudgeCertificate(ssl.get(), &facts);
  // In TLS 1.3 the other side judges this side's certificate after that. One that is content sends
  // its settings, one that is not may close the connection without a word.
  LimitTime(socket.get(), deadline);
  char byte;
  const int count = SSL_read(ssl.get(), &byte, sizeof(byte));
  if (count > 0) return facts;
  const bool is_late = SSL_get_error(ssl.get(), count) == SSL_ERROR_WANT_READ;
  facts.refusal = Alert();
  if (facts.refusal.empty() && !is_late) facts.refusal = "it closed the connection";
  return facts;
}

}  // namespace kvdepot::cli
