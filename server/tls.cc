#include "server/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvdepot {
namespace {

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

absl::Status Wrong(absl::string_view flag, absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", path, ": ", why));
}

// The first certificate of the file; null: it has none.
Owned<X509> ReadCertificate(const std::string& path) {
  const Owned<BIO> file(BIO_new_file(path.c_str(), "r"));
  return Owned<X509>(file == nullptr ? nullptr
                                     : PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr));
}

Owned<EVP_PKEY> ReadKey(const std::string& path) {
  const Owned<BIO> file(BIO_new_file(path.c_str(), "r"));
  if (file == nullptr) return nullptr;
  // Nobody is there to be asked for a passphrase.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  return Owned<EVP_PKEY>(PEM_read_bio_PrivateKey(file.get(), nullptr, no_passphrase, nullptr));
}

}  // namespace

absl::Status CheckTlsFiles(const TlsFiles& files) {
  const Owned<X509> certificate = ReadCertificate(files.certificate);
  if (certificate == nullptr)
    return Wrong("tls_cert_file", files.certificate, "no PEM certificate can be read");
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0)
    return Wrong("tls_cert_file", files.certificate, "the certificate has expired");
  const Owned<EVP_PKEY> key = ReadKey(files.key);
  if (key == nullptr)
    return Wrong("tls_key_file", files.key, "no PEM key without a passphrase can be read");
  if (X509_check_private_key(certificate.get(), key.get()) != 1)
    return Wrong("tls_key_file", files.key, "is the key of another certificate");
  if (!files.client_authorities.empty() && ReadCertificate(files.client_authorities) == nullptr) {
    return Wrong("tls_client_ca_file", files.client_authorities, "no PEM certificate can be read");
  }
  return absl::OkStatus();
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsFiles& files) {
  const bool asks_clients = !files.client_authorities.empty();
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          files.key, files.certificate, files.client_authorities, kTlsRefreshSeconds));
  options.watch_identity_key_cert_pairs();
  if (asks_clients) options.watch_root_certs();
  options.set_cert_request_type(asks_clients
                                    ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                    : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  return grpc::experimental::TlsServerCredentials(options);
}

}  // namespace kvdepot
