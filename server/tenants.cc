#include "server/tenants.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gpu/regular_file.h"

namespace kvdepot {
namespace {

constexpr size_t kTenantNameBytesMax = 64;
// Some 100,000 tokens.
constexpr uint64_t kTokensFileBytesMax = uint64_t{16} << 20;

bool IsTenantName(absl::string_view name) {
  return !name.empty() && name.size() <= kTenantNameBytesMax &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '_'; });
}

}  // namespace

Tenants Tenants::Open() {
  Tenants tenants;
  tenants.open_ = true;
  return tenants;
}

absl::StatusOr<Tenants> Tenants::Load(const std::string& path) {
  const absl::StatusOr<std::string> content = ReadRegularFile(path, kTokensFileBytesMax);
  if (!content.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tokens_file: ", content.status().message()));
  }
  return Parse(*content, path);
}

absl::StatusOr<Tenants::Token> Tenants::ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  // What a line holds is as good as a secret, so no message repeats it.
  if (words.size() != 2 && words.size() != 3) {
    return absl::InvalidArgumentError("expected: TENANT SHA256HEX [client|operator]");
  }
  if (!IsTenantName(words[0])) {
    return absl::InvalidArgumentError(
        absl::StrCat("a tenant's name has 1..", kTenantNameBytesMax, " of A-Z a-z 0-9 - _"));
  }
  if (words[1].size() != 2 * sizeof(Digest) ||
      !std::all_of(words[1].begin(), words[1].end(), absl::ascii_isxdigit)) {
    return absl::InvalidArgumentError("a token's SHA-256 has 64 hexadecimal digits");
  }
  Token token;
  token.identity.tenant = std::string(words[0]);
  if (words.size() == 3) {
    if (words[2] == RoleName(Role::kOperator)) {
      token.identity.role = Role::kOperator;
    } else if (words[2] != RoleName(Role::kClient)) {
      return absl::InvalidArgumentError("a token's role is client or operator");
    }
  }
  const std::string digest = absl::HexStringToBytes(words[1]);
  std::copy(digest.begin(), digest.end(), token.digest.begin());
  return token;
}

absl::StatusOr<Tenants> Tenants::Parse(absl::string_view content, const std::string& path) {
  Tenants tenants;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(content, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const auto fail = [&](absl::string_view why) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens_file: ", path, ":", line_number, ": ", why));
    };
    absl::StatusOr<Token> token = ParseLine(line);
    if (!token.ok()) return fail(token.status().message());
    for (const Token& other : tenants.tokens_) {
      if (other.digest == token->digest)
        return fail("this token stands on an earlier line already");
    }
    tenants.tokens_.push_back(*std::move(token));
  }
  if (tenants.tokens_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("tokens_file: ", path, ": holds no token"));
  }
  return tenants;
}

absl::StatusOr<Identity> Tenants::Identify(absl::string_view authorization) const {
  if (open_) return Identity{"default", Role::kBoth};
  if (authorization.empty()) {
    return absl::UnauthenticatedError("authorization: not sent, must be `Bearer TOKEN`");
  }
  constexpr absl::string_view kScheme = "bearer ";
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return absl::UnauthenticatedError("authorization: must be of the form `Bearer TOKEN`");
  }
  authorization.remove_prefix(kScheme.size());
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(authorization.data()), authorization.size(),
         digest.data());
  // Every token is compared in full, so that time tells nothing about which one was close.
  const Token* found = nullptr;
  for (const Token& token : tokens_) {
    if (CRYPTO_memcmp(token.digest.data(), digest.data(), digest.size()) == 0) found = &token;
  }
  if (found == nullptr) return absl::UnauthenticatedError("authorization: unknown token");
  return found->identity;
}

}  // namespace kvdepot
