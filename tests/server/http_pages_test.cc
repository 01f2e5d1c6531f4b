#include "server/http_pages.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

// CivetWeb has gmtime() write the date of its error pages, from several threads: a wrong date at
// worst. TSan's way to be told of it.
// NOLINTNEXTLINE(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" const char* __tsan_default_suppressions() { return "race:gmtime\n"; }

namespace kvdepot {
namespace {

// A socket.
int Connect(const std::string& address) {
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_port =
      htons(static_cast<uint16_t>(std::atoi(address.substr(address.rfind(':') + 1).c_str())));
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)), 0);
  return fd;
}

std::string Request(const std::string& address, const std::string& method,
                    const std::string& path) {
  const int fd = Connect(address);
  const std::string request = absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;)
    answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  return answer;
}

TEST(HttpPages, ServesItsThreePages) {
  auto pages = HttpPages::Start("127.0.0.1:0", [] { return "kvdepot_up 1\n"; });
  ASSERT_TRUE(pages.ok()) << pages.status();
  const std::string address = (*pages)->address();
  EXPECT_FALSE(absl::EndsWith(address, ":0"));

  const std::string metrics = Request(address, "GET", "/metrics");
  EXPECT_TRUE(absl::StartsWith(metrics, "HTTP/1.1 200")) << metrics;
  EXPECT_TRUE(absl::StrContains(metrics, "text/plain; version=0.0.4")) << metrics;
  EXPECT_TRUE(absl::EndsWith(metrics, "kvdepot_up 1\n")) << metrics;

  EXPECT_TRUE(absl::StartsWith(Request(address, "GET", "/healthz"), "HTTP/1.1 200"));
  EXPECT_TRUE(absl::StartsWith(Request(address, "GET", "/readyz"), "HTTP/1.1 503"));
  (*pages)->SetReady(true);
  EXPECT_TRUE(absl::StartsWith(Request(address, "GET", "/readyz"), "HTTP/1.1 200"));
  EXPECT_TRUE(absl::EndsWith(Request(address, "HEAD", "/readyz"), "\r\n\r\n"));
  EXPECT_TRUE(absl::StartsWith(Request(address, "POST", "/healthz"), "HTTP/1.1 405"));
  EXPECT_TRUE(absl::StartsWith(Request(address, "GET", "/"), "HTTP/1.1 404"));
  EXPECT_TRUE(absl::StartsWith(Request(address, "GET", "/metrics/more"), "HTTP/1.1 404"));

  const absl::Status taken = HttpPages::Start(address, [] { return ""; }).status();
  EXPECT_TRUE(absl::StrContains(taken.message(), absl::StrCat("cannot listen on ", address)))
      << taken;
}

TEST(HttpPages, PeersThatSayHalfARequestHoldUpNoProbe) {
  auto pages = HttpPages::Start("127.0.0.1:0", [] { return ""; });
  ASSERT_TRUE(pages.ok()) << pages.status();
  std::vector<int> silent;
  for (int i = 0; i < 24; ++i) {
    silent.push_back(Connect((*pages)->address()));
    ASSERT_EQ(write(silent.back(), "GET /h", 6), 6);
  }
  const absl::Time start = absl::Now();
  for (int i = 0; i < 5; ++i)
    EXPECT_TRUE(absl::StartsWith(Request((*pages)->address(), "GET", "/healthz"), "HTTP/1.1 200"));
  // Behind a silent peer the first would wait until that is given up, a second.
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(900));
  for (const int fd : silent) close(fd);
}

// By itself CivetWeb takes up to two seconds, so that one quick stop could be luck.
TEST(HttpPages, StopAtOnce) {
  const absl::Time start = absl::Now();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(HttpPages::Start("127.0.0.1:0", [] { return ""; }).ok());
  }
  EXPECT_LT(absl::Now() - start, absl::Seconds(4));
}

}  // namespace
}  // namespace kvdepot
