#include "tests/server/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "gpu/check.h"

namespace kvdepot {
namespace {

constexpr int kSecondsOfDay = 24 * 3600;

std::shared_ptr<EVP_PKEY> NewKey() { return {EVP_EC_gen("P-256"), EVP_PKEY_free}; }

template <class Write>
std::string Pem(const Write& write) {
  const std::unique_ptr<BIO, int (*)(BIO*)> memory(BIO_new(BIO_s_mem()), BIO_free);
  KVDEPOT_CHECK(write(memory.get()) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);  // NOLINT(google-runtime-int)
  return std::string(data, static_cast<size_t>(size));
}

std::string PemOf(X509* certificate) {
  return Pem([&](BIO* to) { return PEM_write_bio_X509(to, certificate); });
}

void Add(X509* certificate, X509* issuer, int extension, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const made = X509V3_EXT_conf_nid(nullptr, &context, extension, value.c_str());
  KVDEPOT_CHECK(made != nullptr);
  X509_add_ext(certificate, made, -1);
  X509_EXTENSION_free(made);
}

// Not signed. Valid from a year ago, or before its end.
std::shared_ptr<X509> NewCertificate(EVP_PKEY* key, const std::string& name,
                                     absl::Duration validity) {
  static long serial = 0;  // NOLINT(google-runtime-int)
  const std::shared_ptr<X509> certificate(X509_new(), X509_free);
  X509_set_version(certificate.get(), X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -365L * kSecondsOfDay);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()),
                  static_cast<long>(absl::ToInt64Seconds(validity)));
  X509_set_pubkey(certificate.get(), key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

}  // namespace

Authority::Authority()
    : key_(NewKey()), own_(NewCertificate(key_.get(), "a test's authority", absl::Hours(24))) {
  X509_set_issuer_name(own_.get(), X509_get_subject_name(own_.get()));
  Add(own_.get(), own_.get(), NID_basic_constraints, "critical,CA:TRUE");
  Add(own_.get(), own_.get(), NID_key_usage, "critical,keyCertSign,cRLSign");
  Add(own_.get(), own_.get(), NID_subject_key_identifier, "hash");
  KVDEPOT_CHECK(X509_sign(own_.get(), key_.get(), EVP_sha256()) > 0);
  pem_ = PemOf(own_.get());
}

Certificate Authority::Issue(const std::string& host, absl::Duration validity) const {
  const std::shared_ptr<EVP_PKEY> key = NewKey();
  const std::shared_ptr<X509> certificate = NewCertificate(key.get(), host, validity);
  X509_set_issuer_name(certificate.get(), X509_get_subject_name(own_.get()));
  Add(certificate.get(), own_.get(), NID_subject_alt_name, "DNS:" + host);
  KVDEPOT_CHECK(X509_sign(certificate.get(), key_.get(), EVP_sha256()) > 0);
  return {PemOf(certificate.get()), Pem([&](BIO* to) {
            return PEM_write_bio_PrivateKey(to, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
          })};
}

}  // namespace kvdepot
