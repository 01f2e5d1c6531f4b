#include "server/tenants.h"

#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {
namespace {

// SHA-256 of "secret-a".
constexpr char kHashA[] = "8766b9cb08e6040b704f1e3ee1e186efccf2635b1d2634d6525333007e6aeae1";
// SHA-256 of "abc", from FIPS 180-2.
constexpr char kHashAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Tenants, OpenMakesEverybodyTheDefault) {
  for (const char* authorization : {"", "Bearer anything"}) {
    const auto identity = Tenants::Open().Identify(authorization);
    ASSERT_TRUE(identity.ok());
    EXPECT_EQ(identity->tenant, "default");
    EXPECT_EQ(identity->role, Role::kBoth);
  }
}

TEST(Tenants, KnowsTokensByTheirHash) {
  const auto tenants = Tenants::Parse(absl::StrCat("# who may come\n\nteam-a ", kHashAbc,
                                                   "  # rotated in May\r\nteam_b\t", kHashA, "\n"),
                                      "tokens");
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  EXPECT_EQ(tenants->token_count(), 2u);
  EXPECT_EQ(tenants->Identify("Bearer abc")->tenant, "team-a");
  EXPECT_EQ(tenants->Identify("bearer abc")->tenant, "team-a");
  EXPECT_EQ(tenants->Identify("Bearer secret-a")->tenant, "team_b");
}

TEST(Tenants, ATokenHasARole) {
  const std::string line = absl::StrCat("a ", kHashAbc);
  const auto role = [&](const char* word) {
    return Tenants::Parse(absl::StrCat(line, word), "tokens")->Identify("Bearer abc")->role;
  };
  EXPECT_EQ(role(""), Role::kClient);
  EXPECT_EQ(role(" client"), Role::kClient);
  EXPECT_EQ(role(" operator  # ours"), Role::kOperator);
  EXPECT_EQ(Tenants::Parse(absl::StrCat(line, " both"), "tokens").status().message(),
            "tokens_file: tokens:1: a token's role is client or operator");
}

TEST(Tenants, RefusesEverythingElse) {
  const auto tenants = Tenants::Parse(absl::StrCat("team-a ", kHashAbc), "tokens");
  ASSERT_TRUE(tenants.ok());
  for (const char* authorization :
       {"", "Bearer", "Bearer ", "Bearer abd", "Bearer abc ", "Bearer  abc", "Basic abc", "abc"}) {
    const absl::Status status = tenants->Identify(authorization).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << authorization;
    EXPECT_TRUE(absl::StartsWith(status.message(), "authorization: ")) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "abd")) << "a message must not repeat tokens";
  }
}

TEST(Tenants, ATenantMayHaveSeveralTokens) {
  const auto tenants = Tenants::Parse(absl::StrCat("a ", kHashAbc, "\na ", kHashA, "\n"), "tokens");
  EXPECT_TRUE(tenants.ok()) << tenants.status();
}

TEST(Tenants, NamesTheBadLine) {
  const std::string good = absl::StrCat("a ", kHashAbc, "\n");
  for (const std::string& bad :
       {std::string("b"), std::string("b 12 34"), std::string("b 1234"),
        absl::StrCat("b ", kHashA, " client operator"), absl::StrCat("b ", kHashA, " Client"),
        absl::StrCat("b ", std::string(64, 'g')), absl::StrCat("b/c ", kHashA),
        absl::StrCat(std::string(65, 'b'), " ", kHashA), absl::StrCat("b ", kHashAbc)}) {
    const absl::Status status =
        Tenants::Parse(absl::StrCat(good, "\n", bad, "\n"), "tokens").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_TRUE(absl::StartsWith(status.message(), "tokens_file: tokens:3: ")) << status;
  }
}

TEST(Tenants, AnEmptyFileIsAMistake) {
  EXPECT_FALSE(Tenants::Parse("# nobody\n", "tokens").ok());
  EXPECT_FALSE(Tenants::Load("/nonexistent/tokens").ok());
}

TEST(Tenants, LoadsAFile) {
  const std::string path = absl::StrCat(testing::TempDir(), "/tokens");
  std::ofstream(path) << "a " << kHashAbc << "\n";
  const auto tenants = Tenants::Load(path);
  ASSERT_TRUE(tenants.ok()) << tenants.status();
  EXPECT_EQ(tenants->Identify("Bearer abc")->tenant, "a");
}

}  // namespace
}  // namespace kvdepot
