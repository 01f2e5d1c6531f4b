#include "server/tls.h"

#include <fcntl.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gpu/regular_file.h"

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

// Chains of certificates have some thousand.
constexpr uint64_t kPemBytesMax = uint64_t{1} << 20;

// What the files of that name hold.
struct TlsContents {
  std::string certificate;
  std::string key;
  std::string client_authorities;
};

absl::Status Read(absl::string_view flag, const std::string& path, std::string* content) {
  absl::StatusOr<std::string> read = ReadRegularFile(path, kPemBytesMax);
  if (!read.ok())
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", read.status().message()));
  *content = *std::move(read);
  return absl::OkStatus();
}

Owned<BIO> Reader(const std::string& content) {
  return Owned<BIO>(BIO_new_mem_buf(content.data(), static_cast<int>(content.size())));
}

// The first certificate; null: there is none.
Owned<X509> FirstCertificate(const std::string& content) {
  return Owned<X509>(PEM_read_bio_X509(Reader(content).get(), nullptr, nullptr, nullptr));
}

Owned<EVP_PKEY> Key(const std::string& content) {
  // Nobody is there to be asked for a passphrase.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  return Owned<EVP_PKEY>(
      PEM_read_bio_PrivateKey(Reader(content).get(), nullptr, no_passphrase, nullptr));
}

absl::Status Check(const TlsFiles& files, const TlsContents& contents) {
  const Owned<X509> certificate = FirstCertificate(contents.certificate);
  if (certificate == nullptr)
    return Wrong("tls_cert_file", files.certificate, "no PEM certificate can be read");
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0)
    return Wrong("tls_cert_file", files.certificate, "the certificate has expired");
  const Owned<EVP_PKEY> key = Key(contents.key);
  if (key == nullptr)
    return Wrong("tls_key_file", files.key, "no PEM key without a passphrase can be read");
  if (X509_check_private_key(certificate.get(), key.get()) != 1)
    return Wrong("tls_key_file", files.key, "is the key of another certificate");
  if (!files.client_authorities.empty() &&
      FirstCertificate(contents.client_authorities) == nullptr) {
    return Wrong("tls_client_ca_file", files.client_authorities, "no PEM certificate can be read");
  }
  return absl::OkStatus();
}

// Under the number that `copy` has: whoever opens its path gets the old content or the new.
absl::Status Replace(const std::string& content, FileDescriptor* copy) {
  FileDescriptor next(memfd_create("kvdepotd_tls", MFD_CLOEXEC));
  const bool written = next && write(next.get(), content.data(), content.size()) ==
                                   static_cast<ssize_t>(content.size());
  if (!written) return absl::ErrnoToStatus(errno, "memfd of a certificate");
  if (!*copy) {
    *copy = std::move(next);
  } else if (dup3(next.get(), copy->get(), O_CLOEXEC) < 0) {
    return absl::ErrnoToStatus(errno, "dup3 of a certificate");
  }
  return absl::OkStatus();
}

std::string PathOf(const FileDescriptor& copy) {
  return copy ? absl::StrCat("/proc/self/fd/", copy.get()) : "";
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsCopies>> TlsCopies::Make(const TlsFiles& files) {
  std::unique_ptr<TlsCopies> copies(new TlsCopies(files));
  const absl::Status status = copies->Refresh();
  if (!status.ok()) return status;
  return copies;
}

absl::Status TlsCopies::Refresh() {
  const bool asks_clients = !files_.client_authorities.empty();
  TlsContents contents;
  MutexLock lock(mutex_);
  absl::Status status = Read("tls_cert_file", files_.certificate, &contents.certificate);
  if (status.ok()) status = Read("tls_key_file", files_.key, &contents.key);
  if (status.ok() && asks_clients) {
    status = Read("tls_client_ca_file", files_.client_authorities, &contents.client_authorities);
  }
  if (status.ok()) status = Check(files_, contents);
  if (status.ok()) status = Replace(contents.certificate, &certificate_);
  if (status.ok()) status = Replace(contents.key, &key_);
  if (status.ok() && asks_clients) {
    status = Replace(contents.client_authorities, &client_authorities_);
  }
  return status;
}

TlsFiles TlsCopies::paths() const {
  return {PathOf(certificate_), PathOf(key_), PathOf(client_authorities_)};
}

std::shared_ptr<grpc::ServerCredentials> TlsCredentials(const TlsCopies& copies) {
  const TlsFiles files = copies.paths();
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
