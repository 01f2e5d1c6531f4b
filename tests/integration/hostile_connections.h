// Connections that are there to be in the way: half-open ones, and readers that do not read.
#ifndef KVDEPOT_TESTS_INTEGRATION_HOSTILE_CONNECTIONS_H_
#define KVDEPOT_TESTS_INTEGRATION_HOSTILE_CONNECTIONS_H_

#include <sys/resource.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/integration/metric.h"
#include "tests/server/tls_fixture.h"

namespace kvdepot {

class HostileConnections : public TlsFixture {
 protected:
  HostileConnections() {
    // Both ends of every connection are this process's.
    rlimit files = {};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
    Serve(authority_.Issue("localhost"));
  }
  ~HostileConnections() override { CloseHalfOpen(); }

  std::shared_ptr<grpc::ChannelCredentials> Good() const {
    return Trusting(authority_.certificate());
  }

  // Every other one begins a handshake: the first bytes of a TLS record with a ClientHello.
  void OpenHalf(int count) {
    const std::string hello("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11);
    for (int i = 0; i < count; ++i) half_open_.push_back(ConnectAndSay(i % 2 == 0 ? "" : hello));
  }
  // The daemon closes every one.
  void WaitUntilHalfOpenAreClosed() {
    for (const int fd : half_open_) {
      char byte = 0;
      while (read(fd, &byte, 1) > 0) {
      }
    }
  }
  void CloseHalfOpen() {
    for (const int fd : half_open_) close(fd);
    half_open_.clear();
  }

  // Calls that fetch more than a connection's window holds, each over a connection of its own, and
  // read nothing until EndSlowReaders.
  void StartSlowReaders(int count, absl::Duration timeout) {
    if (stored_.id().empty()) Store();
    for (int i = 0; i < count; ++i) {
      auto reader = std::make_unique<SlowReader>();
      reader->stub = v1::KvDepotService::NewStub(Channel(Good()));
      reader->context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
      reader->context.AddMetadata("authorization", absl::StrCat("Bearer ", kAliceToken));
      v1::FetchRequest request;
      request.set_session_id(stored_.id());
      reader->stream = reader->stub->Fetch(&reader->context, request);
      slow_.push_back(std::move(reader));
    }
  }
  // How each ended once it was read after its time was over.
  std::vector<grpc::Status> EndSlowReaders() {
    std::vector<grpc::Status> ends;
    for (const std::unique_ptr<SlowReader>& reader : slow_) {
      while (absl::FromChrono(reader->context.deadline()) > absl::Now())
        absl::SleepFor(absl::FromChrono(reader->context.deadline()) - absl::Now());
      v1::FetchResponse response;
      while (reader->stream->Read(&response)) {
      }
      ends.push_back(reader->stream->Finish());
    }
    slow_.clear();
    return ends;
  }
  void CancelSlowReaders() {
    for (const std::unique_ptr<SlowReader>& reader : slow_) {
      reader->context.TryCancel();
      v1::FetchResponse response;
      while (reader->stream->Read(&response)) {
      }
      EXPECT_EQ(reader->stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    }
    slow_.clear();
  }
  // Fetch calls that the daemon has not ended.
  double OpenFetches() const {
    const std::string labels = "method=\"Fetch\"}";
    double open = Metric(daemon_->server().metrics_address(),
                         absl::StrCat("kvdepot_rpc_started_total{", labels));
    for (const char* code : {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}) {
      open -= Metric(daemon_->server().metrics_address(),
                     absl::StrCat("kvdepot_rpc_handled_total{code=\"", code, "\",", labels));
    }
    return open;
  }

 private:
  struct SlowReader {
    std::unique_ptr<v1::KvDepotService::Stub> stub;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::FetchResponse>> stream;
  };

  // 8 MiB of a layer's tokens.
  void Store() {
    daemon_->CallAs(kAliceToken);
    stored_ = daemon_->CreateSession("much");
    for (int position = 0; position < 8192; position += 512)
      ASSERT_TRUE(daemon_->AppendTokens(stored_, position, 512).ok());
  }

  v1::Session stored_;
  std::vector<int> half_open_;
  std::vector<std::unique_ptr<SlowReader>> slow_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_INTEGRATION_HOSTILE_CONNECTIONS_H_
