#include "server/tls.h"

#include <fcntl.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gpu/check.h"
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

// All of them. Empty: there is none, or what follows the last is no PEM that ends.
std::vector<Owned<X509>> Certificates(const std::string& content) {
  const Owned<BIO> reader = Reader(content);
  std::vector<Owned<X509>> certificates;
  ERR_clear_error();
  while (X509* const next = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr))
    certificates.emplace_back(next);
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) certificates.clear();
  return certificates;
}

Owned<EVP_PKEY> Key(const std::string& content) {
  // Nobody is there to be asked for a passphrase.
  const auto no_passphrase = [](char*, int, int, void*) { return -1; };
  return Owned<EVP_PKEY>(
      PEM_read_bio_PrivateKey(Reader(content).get(), nullptr, no_passphrase, nullptr));
}

absl::Status Check(const TlsFiles& files, const TlsContents& contents) {
  const std::vector<Owned<X509>> chain = Certificates(contents.certificate);
  if (chain.empty())
    return Wrong("tls_cert_file", files.certificate, "is no whole PEM of certificates");
  // The daemon's own.
  X509* const certificate = chain.front().get();
  if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
    return Wrong("tls_cert_file", files.certificate, "the certificate has expired");
  const Owned<EVP_PKEY> key = Key(contents.key);
  if (key == nullptr)
    return Wrong("tls_key_file", files.key, "no PEM key without a passphrase can be read");
  if (X509_check_private_key(certificate, key.get()) != 1)
    return Wrong("tls_key_file", files.key, "is the key of another certificate");
  if (!files.client_authorities.empty() && Certificates(contents.client_authorities).empty()) {
    return Wrong("tls_client_ca_file", files.client_authorities, "is no whole PEM of certificates");
  }
  return absl::OkStatus();
}

absl::StatusOr<FileDescriptor> CopyOf(const std::string& content) {
  FileDescriptor copy(memfd_create("kvdepotd_tls", MFD_CLOEXEC));
  if (!copy) return absl::ErrnoToStatus(errno, "memfd of a certificate");
  const ssize_t written = write(copy.get(), content.data(), content.size());
  if (written < 0) return absl::ErrnoToStatus(errno, "memfd of a certificate");
  if (written != static_cast<ssize_t>(content.size()))
    return absl::ResourceExhaustedError("memfd of a certificate: no memory for all of it");
  return copy;
}

// Under the number that `copy` has: whoever opens its path gets the old content or the new.
void Replace(FileDescriptor next, FileDescriptor* copy) {
  if (!*copy) {
    *copy = std::move(next);
  } else {
    // Both are open: nothing else can go wrong.
    KVDEPOT_CHECK(dup3(next.get(), copy->get(), O_CLOEXEC) >= 0);
  }
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
  absl::Status status = Read("tls_cert_file", files_.certificate, &contents.certificate);
  if (status.ok()) status = Read("tls_key_file", files_.key, &contents.key);
  if (status.ok() && asks_clients) {
    status = Read("tls_client_ca_file", files_.client_authorities, &contents.client_authorities);
  }
  if (status.ok()) status = Check(files_, contents);
  if (!status.ok()) return status;
  // All before the first is put in place: half of them would fit nothing.
  absl::StatusOr<FileDescriptor> certificate = CopyOf(contents.certificate);
  if (!certificate.ok()) return certificate.status();
  absl::StatusOr<FileDescriptor> key = CopyOf(contents.key);
  if (!key.ok()) return key.status();
  absl::StatusOr<FileDescriptor> client_authorities = CopyOf(contents.client_authorities);
  if (!client_authorities.ok()) return client_authorities.status();
  Replace(*std::move(certificate), &certificate_);
  Replace(*std::move(key), &key_);
  if (asks_clients) Replace(*std::move(client_authorities), &client_authorities_);
  return absl::OkStatus();
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
