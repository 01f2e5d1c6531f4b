// TCP listeners: who gets through TLS, and what is told to those who do not.
#include "server/tls.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/server/certificates.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// SHA-256 of "abc", and of "".
constexpr char kAliceLine[] =
    "alice ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
constexpr char kOtherLine[] =
    "bob e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n";
constexpr char kToken[] = "abc";

void Write(const std::string& path, const std::string& text) {
  // As whoever renews certificates does it: readers see the old file or the new one.
  std::ofstream(path + ".new") << text;
  ASSERT_EQ(std::rename((path + ".new").c_str(), path.c_str()), 0);
}

class TlsTest : public testing::Test {
 protected:
  void Serve(const Certificate& certificate, const std::string& client_authorities = "") {
    daemon_ = std::make_unique<TestDaemon>([&](Options& options, const std::string& folder) {
      folder_ = folder;
      Write(folder + "/tokens", kAliceLine);
      Write(folder + "/cert.pem", certificate.certificate);
      Write(folder + "/key.pem", certificate.key);
      options.tokens_file = folder + "/tokens";
      options.tls_cert_file = folder + "/cert.pem";
      options.tls_key_file = folder + "/key.pem";
      if (!client_authorities.empty()) {
        Write(folder + "/clients.pem", client_authorities);
        options.tls_client_ca_file = folder + "/clients.pem";
      }
      options.listen += ",127.0.0.1:0";
      options_ = options;
    });
  }
  std::string port() const {
    const std::string& address = daemon_->server().addresses()[1];
    return address.substr(address.rfind(':') + 1);
  }
  // Of one call over a connection of its own. Null: not TLS.
  grpc::Status Call(const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                    const std::string& token = kToken, size_t metadata_bytes = 0) const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto channel = grpc::CreateCustomChannel(
        absl::StrCat("localhost:", port()),
        credentials == nullptr ? grpc::InsecureChannelCredentials() : credentials, arguments);
    const auto stub = v1::KvDepotService::NewStub(channel);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    if (metadata_bytes > 0) context.AddMetadata("x-large", std::string(metadata_bytes, 'x'));
    v1::GetServerInfoResponse info;
    return stub->GetServerInfo(&context, {}, &info);
  }
  static std::shared_ptr<grpc::ChannelCredentials> Trusting(const std::string& authorities,
                                                            const Certificate& own = {}) {
    return grpc::SslCredentials({authorities, own.key, own.certificate});
  }

  const Authority authority_;
  std::string folder_;
  Options options_;
  std::unique_ptr<TestDaemon> daemon_;
};

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
  EXPECT_EQ(with(clients.Issue("worker", -1)), grpc::StatusCode::UNAVAILABLE) << "expired";
}

TEST_F(TlsTest, CertificatesAreReadAgainWhenTheyChange) {
  Serve(authority_.Issue("localhost"));
  const Authority next;
  const Certificate renewed = next.Issue("localhost");
  Write(folder_ + "/key.pem", renewed.key);
  Write(folder_ + "/cert.pem", renewed.certificate);
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!Call(Trusting(next.certificate())).ok()) ASSERT_LT(absl::Now(), deadline);
  EXPECT_EQ(Call(Trusting(authority_.certificate())).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(TlsTest, ATokenThatIsGoneIsUnknownToTheNextCall) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  ASSERT_TRUE(Call(good).ok());
  Write(folder_ + "/tokens", "alice\n");
  EXPECT_TRUE(absl::IsInvalidArgument(daemon_->server().Reload(options_)));
  EXPECT_TRUE(Call(good).ok()) << "a file that is wrong changes nothing";
  Write(folder_ + "/tokens", kOtherLine);
  ASSERT_TRUE(daemon_->server().Reload(options_).ok());
  EXPECT_EQ(Call(good).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(TlsTest, MetadataHasALimit) {
  Serve(authority_.Issue("localhost"));
  const auto good = Trusting(authority_.certificate());
  EXPECT_TRUE(Call(good, kToken, 4000).ok());
  EXPECT_EQ(Call(good, kToken, 100000).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TlsTest, ConnectionsThatSayNothingKeepNobodyOut) {
  Serve(authority_.Issue("localhost"));
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int number = 0;
  ASSERT_TRUE(absl::SimpleAtoi(port(), &number));
  to.sin_port = htons(static_cast<uint16_t>(number));
  std::vector<int> silent;
  for (int i = 0; i < 400; ++i) {
    silent.push_back(socket(AF_INET, SOCK_STREAM, 0));
    ASSERT_EQ(connect(silent.back(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0) << i;
  }
  EXPECT_TRUE(Call(Trusting(authority_.certificate())).ok());
  // The daemon lets go of them.
  char byte = 0;
  EXPECT_EQ(read(silent.front(), &byte, 1), 0);
  for (const int fd : silent) close(fd);
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
    Write(folder + "/cert.pem", certificate);
    Write(folder + "/key.pem", key);
    Write(folder + "/clients.pem", clients);
    const absl::Status status =
        CheckTlsFiles({folder + "/cert.pem", folder + "/key.pem", folder + "/clients.pem"});
    return std::string(status.message());
  };
  EXPECT_EQ(check(good.certificate, good.key, authority.certificate()), "");
  const Certificate other = authority.Issue("localhost");
  EXPECT_TRUE(absl::EndsWith(check(good.certificate, other.key, authority.certificate()),
                             "key.pem: is the key of another certificate"));
  const Certificate old = authority.Issue("localhost", -1);
  EXPECT_TRUE(absl::EndsWith(check(old.certificate, old.key, authority.certificate()),
                             "cert.pem: the certificate has expired"));
  EXPECT_TRUE(absl::StartsWith(check("", good.key, authority.certificate()), "tls_cert_file: "));
  EXPECT_TRUE(
      absl::StartsWith(check(good.certificate, "", authority.certificate()), "tls_key_file: "));
  EXPECT_TRUE(
      absl::StartsWith(check(good.certificate, good.key, "no PEM"), "tls_client_ca_file: "));
}

}  // namespace
}  // namespace kvdepot
