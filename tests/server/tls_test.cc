// TCP listeners: who gets through TLS, and what is told to those who do not.
#include "server/tls.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/server/certificates.h"
#include "tests/server/tls_fixture.h"

namespace kvdepot {
namespace {

using TlsTest = TlsFixture;

TEST_F(TlsTest, WhoTrustsTheAuthorityAndHasATokenGetsThrough) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  EXPECT_EQ(Call(good).error_code(), grpc::StatusCode::OK);
  EXPECT_EQ(Call(good, "").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Call(good, "wrong").error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Call(nullptr).error_code(), grpc::StatusCode::UNAVAILABLE) << "without TLS";
  EXPECT_EQ(Call(Trusting(Authority().certificate())).error_code(), grpc::StatusCode::UNAVAILABLE)
      << "another authority";
}

TEST_F(TlsTest, ACertificateOfAnotherHostIsNotTrusted) {
  Serve(authority_.Issue("elsewhere"));
  EXPECT_EQ(Call(Trusting(authority_.certificate())).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, ClientsShowCertificatesWhereTheyAreAskedFor) {
  const Authority clients;
  Serve(authority_.Issue("localhost"), clients.certificate());
  const auto with = [&](const Certificate& own) {
    return Call(Trusting(authority_.certificate(), own)).error_code();
  };
  EXPECT_EQ(with(clients.Issue("worker")), grpc::StatusCode::OK);
  EXPECT_EQ(with({}), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(with(authority_.Issue("worker")), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(with(clients.Issue("worker", -absl::Hours(24))), grpc::StatusCode::UNAVAILABLE)
      << "expired";
}

TEST_F(TlsTest, CertificatesAreReadAgainWhenTheyChange) {
  Serve(authority_.Issue("localhost"));
  const Authority next;
  const Certificate renewed = next.Issue("localhost");
  ReplaceFile(folder_ + "/key.pem", renewed.key);
  ReplaceFile(folder_ + "/cert.pem", renewed.certificate);
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!Call(Trusting(next.certificate())).ok()) ASSERT_LT(absl::Now(), deadline);
  EXPECT_EQ(Call(Trusting(authority_.certificate())).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, CertificatesThatAreWrongChangeNothing) {
  const Certificate first = authority_.Issue("localhost");
  Serve(first);
  const auto good = Trusting(authority_.certificate());
  const Authority next;
  const Certificate renewed = next.Issue("localhost");
  // Half of a renewal, nonsense, and a chain that breaks off, for longer than gRPC takes to read
  // them again.
  const std::string broken_off =
      first.certificate + renewed.certificate.substr(0, renewed.certificate.size() / 2);
  for (const std::string& text : {renewed.certificate, std::string("nonsense"), broken_off}) {
    ReplaceFile(folder_ + "/cert.pem", text);
    EXPECT_TRUE(absl::IsInvalidArgument(daemon_->server().ReloadCertificates()));
    const absl::Time until = absl::Now() + absl::Seconds(3 * kTlsRefreshSeconds);
    while (absl::Now() < until) ASSERT_TRUE(Call(good).ok());
  }
  ReplaceFile(folder_ + "/key.pem", renewed.key);
  ReplaceFile(folder_ + "/cert.pem", renewed.certificate);
  EXPECT_TRUE(daemon_->server().ReloadCertificates().ok());
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!Call(Trusting(next.certificate())).ok()) ASSERT_LT(absl::Now(), deadline);
}

TEST_F(TlsTest, ATokenThatIsGoneIsUnknownToTheNextCall) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  ASSERT_TRUE(Call(good).ok());
  ReplaceFile(folder_ + "/tokens", "alice\n");
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->server().ReloadTokens()));
  EXPECT_TRUE(Call(good).ok()) << "a file that is wrong changes nothing";
  // As a container runtime leaves it where a mounted file is missing.
  ASSERT_EQ(std::remove((folder_ + "/tokens").c_str()), 0);
  ASSERT_EQ(mkdir((folder_ + "/tokens").c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->server().ReloadTokens()));
  EXPECT_TRUE(Call(good).ok()) << "nor does a folder";
  ASSERT_EQ(rmdir((folder_ + "/tokens").c_str()), 0);
  ReplaceFile(folder_ + "/tokens", kBobLine);
  ASSERT_TRUE(daemon_->server().ReloadTokens().ok());
  EXPECT_EQ(Call(good).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(TlsTest, TokensAreReadAgainWhenTheyChange) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  ASSERT_TRUE(Call(good).ok());
  ReplaceFile(folder_ + "/tokens", kBobLine);
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (Call(good).ok()) ASSERT_LT(absl::Now(), deadline);
  EXPECT_EQ(Call(good).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(daemon_->server().token_count(), 1u);
}

TEST_F(TlsTest, AClientsTokenIsNoOperators) {
  Serve(authority_.Issue("localhost"));
  const auto stub = v1::KvDepotService::NewStub(Channel(Trusting(authority_.certificate())));
  Context context(kAliceToken);
  v1::SetBudgetRequest request;
  request.set_budget("1GiB");
  v1::SetBudgetResponse response;
  EXPECT_EQ(stub->SetBudget(context.get(), request, &response).error_code(),
            grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(TlsTest, MetadataHasALimit) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  EXPECT_TRUE(Call(good, kAliceToken, 4000).ok());
  EXPECT_EQ(Call(good, kAliceToken, 100000).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TlsTest, AnAddressThatCannotBeHadIsNamed) {
  Serve(authority_.Issue("localhost"));
  options_.listen = "nonsense:http";
  EXPECT_EQ(Server::Start(options_).status().message(), "listen: cannot listen on nonsense:http");
}

TEST(TlsFiles, WhatIsWrongIsNamed) {
  const std::string folder = testing::TempDir();
  const Authority authority;
  const Certificate good = authority.Issue("localhost");
  const auto check = [&](const std::string& certificate, const std::string& key,
                         const std::string& clients) {
    ReplaceFile(folder + "/cert.pem", certificate);
    ReplaceFile(folder + "/key.pem", key);
    ReplaceFile(folder + "/clients.pem", clients);
    const absl::Status status =
        TlsCopies::Make({folder + "/cert.pem", folder + "/key.pem", folder + "/clients.pem"})
            .status();
    return std::string(status.message());
  };
  EXPECT_EQ(check(good.certificate, good.key, authority.certificate()), "");
  const Certificate other = authority.Issue("localhost");
  EXPECT_TRUE(absl::EndsWith(check(good.certificate, other.key, authority.certificate()),
                             "key.pem: is the key of another certificate"));
  const Certificate old = authority.Issue("localhost", -absl::Hours(24));
  EXPECT_TRUE(absl::EndsWith(check(old.certificate, old.key, authority.certificate()),
                             "cert.pem: the certificate has expired"));
  EXPECT_TRUE(absl::StartsWith(check("", good.key, authority.certificate()), "tls_cert_file: "));
  EXPECT_TRUE(
      absl::StartsWith(check(good.certificate, "", authority.certificate()), "tls_key_file: "));
  EXPECT_TRUE(
      absl::StartsWith(check(good.certificate, good.key, "no PEM"), "tls_client_ca_file: "));
  const std::string two = authority.certificate() + Authority().certificate();
  EXPECT_EQ(check(good.certificate + authority.certificate(), good.key, two), "");
  EXPECT_TRUE(absl::StartsWith(check(good.certificate, good.key, two.substr(0, two.size() - 100)),
                               "tls_client_ca_file: "));
}

TEST(TlsFiles, CopiesThatCannotBeMadeLeaveThoseThatAre) {
  const std::string folder = testing::TempDir();
  const Authority authority;
  const auto replace = [&](const Certificate& certificate) {
    ReplaceFile(folder + "/cert.pem", certificate.certificate);
    ReplaceFile(folder + "/key.pem", certificate.key);
  };
  const auto content = [](const std::string& path) {
    return std::string(std::istreambuf_iterator<char>(std::ifstream(path).rdbuf()), {});
  };
  const Certificate first = authority.Issue("localhost");
  replace(first);
  const auto copies = TlsCopies::Make({folder + "/cert.pem", folder + "/key.pem", ""});
  ASSERT_TRUE(copies.ok()) << copies.status();
  const Certificate renewed = authority.Issue("localhost");
  replace(renewed);
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  // With one descriptor more each time, until there are enough.
  int refusals = 0;
  for (absl::Status status = absl::UnknownError("none yet"); !status.ok(); ++refusals) {
    const rlimit few = {static_cast<rlim_t>(refusals), limit.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    status = (*copies)->Refresh();
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (status.ok()) break;
    ASSERT_EQ(content((*copies)->paths().certificate), first.certificate);
    ASSERT_EQ(content((*copies)->paths().key), first.key);
  }
  EXPECT_GT(refusals, 2);
  EXPECT_EQ(content((*copies)->paths().certificate), renewed.certificate);
  EXPECT_EQ(content((*copies)->paths().key), renewed.key);
}

}  // namespace
}  // namespace kvdepot
