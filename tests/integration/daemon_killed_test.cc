// The daemon is killed under processes that map its memory, and started again on the same socket:
// what is mapped stays as it was, calls say first that nothing answers and then that another daemon
// does, and a new lease goes on.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/kvdepot.h"
#include "client/mapped_session.h"
#include "client/registered_buffer.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

std::string Hex(uint64_t epoch) { return absl::StrCat(absl::Hex(epoch, absl::kZeroPad16)); }

class DaemonKilledTest : public ::testing::Test {
 protected:
  std::unique_ptr<MappedSession> Map(const std::shared_ptr<Lease>& lease, const std::string& id,
                                     MapAccess access) {
    auto session = MappedSession::Open(lease, id, {access, 256}, Soon());
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }
  static void Append(MappedSession* session, int count) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const MappedTokens tokens(layer, static_cast<int>(session->token_count(layer)), count);
      ASSERT_TRUE(session->Append(layer, tokens.tokens()).ok());
    }
    ASSERT_TRUE(session->error().ok()) << session->error();
  }
  std::vector<float> Outputs(MappedSession* session) {
    std::vector<float> outputs;
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery query(7);
      EXPECT_TRUE(stream_.Attend(layer, 0, {query.Of(session)}).ok());
      EXPECT_LT(query.ErrorOver(layer, static_cast<int>(session->token_count(layer))), 1e-4);
      outputs.insert(outputs.end(), query.output().begin(), query.output().end());
    }
    return outputs;
  }
  // What a call says once the daemon that answers is another one.
  template <typename Call>
  static absl::Status WhileUnavailable(const Call& call) {
    absl::Status status = call();
    const absl::Time deadline = Soon();
    while (absl::IsUnavailable(status) && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(20));
      status = call();
    }
    return status;
  }

  DaemonProcess daemon_{{"--device=cpu"}};
  MappedStream stream_{1};
};

TEST_F(DaemonKilledTest, ClientsReadOnAndGoOnWithANewLease) {
  auto writer_lease = daemon_.OpenLease();
  auto reader_lease = daemon_.OpenLease();
  ASSERT_TRUE(writer_lease != nullptr && reader_lease != nullptr);
  kvdepot_lease* c_lease = nullptr;
  ASSERT_EQ(kvdepot_lease_open(daemon_.target().c_str(), nullptr, 10, &c_lease), KVDEPOT_OK);
  ASSERT_EQ(kvdepot_lease_status(c_lease), KVDEPOT_OK);
  const std::string id = daemon_.CreateSession("chat");
  auto buffer = RegisteredBuffer::OfHost(reader_lease, 4096, Soon());
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  auto writer = Map(writer_lease, id, MapAccess::kWrite);
  ASSERT_NE(writer, nullptr);
  // Two Commits, so that a part is sealed and lies in another slab.
  for (int i = 0; i < 2; ++i) {
    Append(writer.get(), 256);
    ASSERT_TRUE(writer->Commit(Soon()).ok());
  }
  Append(writer.get(), 5);
  auto reader = Map(reader_lease, id, MapAccess::kRead);
  ASSERT_NE(reader, nullptr);
  ASSERT_EQ(reader->committed_token_count(), 512u);
  const std::vector<float> written = Outputs(writer.get());
  const std::vector<float> read = Outputs(reader.get());

  daemon_.Kill();
  EXPECT_TRUE(absl::IsUnavailable(writer->Commit(Soon())));
  EXPECT_TRUE(absl::IsUnavailable(reader->Refresh(Soon())));
  // Each lease learns it from its own stream, when that breaks.
  const absl::Time deadline = Soon();
  while ((kvdepot_lease_status(c_lease) == KVDEPOT_OK || writer_lease->status().ok()) &&
         absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  EXPECT_EQ(kvdepot_lease_status(c_lease), KVDEPOT_UNAVAILABLE) << kvdepot_error_message();
  EXPECT_TRUE(absl::IsUnavailable(writer_lease->status())) << writer_lease->status();
  EXPECT_TRUE(absl::IsUnavailable(Lease::Open(daemon_.target(), {}, Soon()).status()));
  EXPECT_EQ(Outputs(writer.get()), written);
  EXPECT_EQ(Outputs(reader.get()), read);

  daemon_.Start();
  const auto next_lease = daemon_.OpenLease();
  ASSERT_NE(next_lease, nullptr);
  EXPECT_NE(next_lease->epoch(), writer_lease->epoch());
  const auto expect_both_epochs = [&](const Lease& lease, const absl::Status& status) {
    std::cerr << status << "\n";
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    for (const uint64_t epoch : {lease.epoch(), next_lease->epoch()}) {
      EXPECT_NE(status.message().find(Hex(epoch)), absl::string_view::npos) << status;
    }
  };
  expect_both_epochs(*writer_lease, WhileUnavailable([&] { return writer->Commit(Soon()); }));
  expect_both_epochs(*reader_lease, WhileUnavailable([&] { return reader->Refresh(Soon()); }));
  expect_both_epochs(*reader_lease,
                     WhileUnavailable([&] { return reader_lease->Unmap(id, Soon()); }));
  expect_both_epochs(*reader_lease, WhileUnavailable([&] {
    return RegisteredBuffer::OfHost(reader_lease, 4096, Soon()).status();
  }));
  const auto client = Client::Connect(daemon_.target(), {}, Soon());
  ASSERT_TRUE(client.ok()) << client.status();
  v1::FetchRequest fetch;
  fetch.set_session_id(id);
  *fetch.mutable_k_range() = *fetch.mutable_v_range() = (*buffer)->Range(0, 1024);
  expect_both_epochs(*reader_lease, (*client)->Fetch(fetch, {}, {}, Soon()).status());
  EXPECT_TRUE((*buffer)->Unregister(Soon()).ok());
  // Nothing has been dropped yet, and the new daemon has its own memory.
  const std::string next_id = daemon_.CreateSession("chat");
  EXPECT_NE(next_id, id);
  auto next_writer = Map(next_lease, next_id, MapAccess::kWrite);
  ASSERT_NE(next_writer, nullptr);
  EXPECT_EQ(next_writer->committed_token_count(), 0u);
  Append(next_writer.get(), 256);
  ASSERT_TRUE(next_writer->Commit(Soon()).ok());
  EXPECT_EQ(Outputs(writer.get()), written);
  EXPECT_EQ(Outputs(reader.get()), read);

  // Mappings of the old daemon go, which takes no daemon; the new one's stay.
  kvdepot_lease_close(c_lease);
  writer = nullptr;
  reader = nullptr;
  writer_lease = nullptr;
  reader_lease = nullptr;
  *buffer = nullptr;
  Append(next_writer.get(), 256);
  ASSERT_TRUE(next_writer->Commit(Soon()).ok());
  const auto next_reader = Map(daemon_.OpenLease(), next_id, MapAccess::kRead);
  ASSERT_NE(next_reader, nullptr);
  EXPECT_EQ(next_reader->committed_token_count(), 512u);
  EXPECT_EQ(Outputs(next_reader.get()), read);
}

}  // namespace
}  // namespace kvdepot
