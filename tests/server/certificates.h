// An authority and certificates by it, for tests of TLS. Keys are of P-256.
#ifndef KVDEPOT_TESTS_SERVER_CERTIFICATES_H_
#define KVDEPOT_TESTS_SERVER_CERTIFICATES_H_

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "absl/time/time.h"

namespace kvdepot {

// In PEM.
struct Certificate {
  std::string certificate;
  std::string key;
};

class Authority {
 public:
  Authority();
  const std::string& certificate() const { return pem_; }
  // For a host (subjectAltName DNS), valid for so long from now on, which may be negative.
  Certificate Issue(const std::string& host, absl::Duration validity = absl::Hours(24)) const;

 private:
  std::shared_ptr<EVP_PKEY> key_;
  std::shared_ptr<X509> own_;
  std::string pem_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_CERTIFICATES_H_
