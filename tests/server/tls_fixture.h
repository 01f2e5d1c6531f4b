// A daemon with TLS and tokens, an authority of its own, and clients that try to get in over TCP.
#ifndef KVDEPOT_TESTS_SERVER_TLS_FIXTURE_H_
#define KVDEPOT_TESTS_SERVER_TLS_FIXTURE_H_

#include <arpa/inet.h>
#include <sys/socket.h>

#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "gtest/gtest.h"
#include "tests/server/certificates.h"
#include "tests/server/services/test_daemon.h"
#include "tests/server/token_file.h"

namespace kvdepot {

class TlsFixture : public testing::Test {
 protected:
  void Serve(const Certificate& certificate, const std::string& client_authorities = "") {
    daemon_ = std::make_unique<TestDaemon>([&](Options& options, const std::string& folder) {
      folder_ = folder;
      ReplaceFile(folder + "/tokens", kAliceLine);
      ReplaceFile(folder + "/cert.pem", certificate.certificate);
      ReplaceFile(folder + "/key.pem", certificate.key);
      options.tokens_file = folder + "/tokens";
      options.tls_cert_file = folder + "/cert.pem";
      options.tls_key_file = folder + "/key.pem";
      if (!client_authorities.empty()) {
        ReplaceFile(folder + "/clients.pem", client_authorities);
        options.tls_client_ca_file = folder + "/clients.pem";
      }
      options.listen += ",127.0.0.1:0";
      options.metrics_address = "127.0.0.1:0";
      options_ = options;
    });
  }
  std::string port() const {
    const std::string& address = daemon_->server().addresses()[1];
    return address.substr(address.rfind(':') + 1);
  }
  // A connection of its own. `credentials` null: without TLS.
  std::shared_ptr<grpc::Channel> Channel(
      const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetMaxReceiveMessageSize(-1);
    return grpc::CreateCustomChannel(
        absl::StrCat("localhost:", port()),
        credentials == nullptr ? grpc::InsecureChannelCredentials() : credentials, arguments);
  }
  // Of one call over a connection of its own.
  grpc::Status Call(const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                    const std::string& token = kAliceToken, size_t metadata_bytes = 0) const {
    const auto stub = v1::KvDepotService::NewStub(Channel(credentials));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    if (metadata_bytes > 0) context.AddMetadata("x-large", std::string(metadata_bytes, 'x'));
    v1::GetServerInfoResponse info;
    return stub->GetServerInfo(&context, {}, &info);
  }
  // A TCP connection that says `words` and no more. The caller closes it.
  int ConnectAndSay(const std::string& words) const {
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int number = 0;
    EXPECT_TRUE(absl::SimpleAtoi(port(), &number));
    to.sin_port = htons(static_cast<uint16_t>(number));
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    EXPECT_EQ(send(fd, words.data(), words.size(), 0), static_cast<ssize_t>(words.size()));
    return fd;
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

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_TLS_FIXTURE_H_
