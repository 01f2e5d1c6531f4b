// Who a caller is: bearer tokens and the tenants that they name.
//
// The token file holds one token a line, "TENANT SHA256HEX ROLE", where SHA256HEX is the SHA-256 of
// the token in hexadecimal and ROLE, if it is there, `client` (the default) or `operator`; '#'
// starts a comment. A tenant may have several lines, so that tokens can be rotated. The daemon
// never holds a token itself. Immutable after loading, hence thread-safe.
#ifndef KVDEPOT_SERVER_TENANTS_H_
#define KVDEPOT_SERVER_TENANTS_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/role.h"

namespace kvdepot {

struct Identity {
  std::string tenant;
  Role role = Role::kClient;
};

class Tenants {
 public:
  // Everybody is the tenant `default`, in both roles: whoever may open the Unix socket.
  static Tenants Open();
  // INVALID_ARGUMENT names file, line and what is wrong with it.
  static absl::StatusOr<Tenants> Load(const std::string& path);
  static absl::StatusOr<Tenants> Parse(absl::string_view content, const std::string& path);

  // Who sends a call whose metadata `authorization` is `authorization` (empty: not sent).
  // UNAUTHENTICATED without a token of the form "Bearer TOKEN" that the file knows.
  absl::StatusOr<Identity> Identify(absl::string_view authorization) const;

  size_t token_count() const { return tokens_.size(); }

 private:
  using Digest = std::array<uint8_t, 32>;
  struct Token {
    Digest digest;
    Identity identity;
  };

  static absl::StatusOr<Token> ParseLine(absl::string_view line);

  bool open_ = false;
  std::vector<Token> tokens_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_TENANTS_H_
