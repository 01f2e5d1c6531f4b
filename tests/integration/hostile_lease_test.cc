// Clients that break the rules of mapped sessions: each gets its code, and nobody else notices.
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gpu/shared_memory.h"
#include "gtest/gtest.h"
#include "tests/integration/metric.h"
#include "tests/integration/raw_lease.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

using grpc::StatusCode;

// SHA-256 of "one", "two" and "three"; the last one's tenant may not map.
constexpr char kTokens[] =
    "first 7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed\n"
    "second 3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3\n"
    "third 8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f\n";

class HostileLeaseTest : public ::testing::Test {
 protected:
  HostileLeaseTest()
      : daemon_([](Options& options, const std::string& folder) {
          InHostMemory(options, folder);
          options.tokens_file = absl::StrCat(folder, "/tokens");
          std::ofstream(options.tokens_file) << kTokens;
          options.metrics_address = "127.0.0.1:0";
          options.mapping_tenants = "first,second";
          options.engine.leases_per_tenant_max = 8;
          options.engine.directory_versions_max = 4;
          options.engine.room_tokens_max = 1000;
        }) {
    daemon_.CallAs("two");
    neighbour_ = daemon_.CreateSession("neighbour");
    EXPECT_TRUE(daemon_.AppendTokens(neighbour_, 0, 200).ok());
    EXPECT_TRUE(daemon_.Attend(AttendOf(neighbour_, 0, Queries(1, 1)), &neighbour_sees_).ok());
    daemon_.CallAs("one");
    session_ = daemon_.CreateSession("chat");
  }
  void TearDown() override {
    // Whatever happened: another tenant maps, and computes what it did before.
    daemon_.CallAs("two");
    v1::AttendResponse sees;
    EXPECT_TRUE(daemon_.Attend(AttendOf(neighbour_, 0, Queries(1, 1)), &sees).ok());
    EXPECT_EQ(sees.items(0).output(), neighbour_sees_.items(0).output());
    RawLease lease(&daemon_.stub(), 1, "two");
    EXPECT_TRUE(lease.opened());
    lease.Attach();
    v1::MapSessionResponse response;
    EXPECT_TRUE(lease.Map(neighbour_.id(), v1::MAP_ACCESS_WRITE, &response).ok());
  }

  std::unique_ptr<RawLease> Attached() {
    auto lease = std::make_unique<RawLease>(&daemon_.stub(), 1, "one");
    EXPECT_TRUE(lease->opened());
    lease->Attach();
    return lease;
  }
  // `count` tokens of zeros, which a slab is full of, are committed.
  void CommitZeros(RawLease* lease, uint64_t generation, uint64_t count) {
    const grpc::Status status = lease->Commit(lease->CommitOf(session_.id(), generation, count));
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  TestDaemon daemon_;
  v1::Session neighbour_;
  v1::AttendResponse neighbour_sees_;
  v1::Session session_;
  v1::MapSessionResponse mapped_;
};

TEST_F(HostileLeaseTest, UnknownLayoutVersion) {
  RawLease lease(&daemon_.stub(), 999, "one");
  EXPECT_FALSE(lease.opened());
  const grpc::Status status = lease.WaitForEnd();
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "999"));
  EXPECT_TRUE(absl::StrContains(status.error_message(), "version 1"));
}

TEST_F(HostileLeaseTest, FirstMessageIsNoOpeningOrTheOpeningComesTwice) {
  RawLease lease(&daemon_.stub(), 1, "one");
  v1::OpenLeaseRequest request;
  request.mutable_opening()->set_layout_version(1);
  lease.Send(request);
  EXPECT_EQ(lease.WaitForEnd().error_code(), StatusCode::INVALID_ARGUMENT);
  Context context("one");
  const auto stream = daemon_.stub().OpenLease(context.get());
  request.mutable_heartbeat();
  stream->Write(request);
  v1::OpenLeaseResponse response;
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(HostileLeaseTest, PidfdOfAnotherProcess) {
  const pid_t other = fork();
  while (other == 0) pause();
  const FileDescriptor pidfd = PidfdOf(other);
  RawLease lease(&daemon_.stub(), 1, "one");
  lease.SayHello(pidfd.get());
  const grpc::Status status = lease.WaitForEnd();
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StartsWith(status.error_message(), "pidfd: of process"))
      << status.error_message();
  EXPECT_EQ(
      Metric(daemon_.server().metrics_address(),
             "kvdepot_mapping_errors_total{code=\"INVALID_ARGUMENT\",operation=\"identify\"}"),
      1);
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
}

TEST_F(HostileLeaseTest, NoPidfdOrAnotherDescriptor) {
  for (const int descriptor : {-1, STDERR_FILENO}) {
    RawLease lease(&daemon_.stub(), 1, "one");
    lease.SayHello(descriptor);
    EXPECT_EQ(lease.WaitForEnd().error_code(), StatusCode::INVALID_ARGUMENT);
  }
}

TEST_F(HostileLeaseTest, HelloForAnotherLeaseOrForNone) {
  const auto victim = Attached();
  const FileDescriptor own = PidfdOf(getpid());
  RawLease lease(&daemon_.stub(), 1, "one");
  lease.SayHello(own.get(), victim->lease().lease_id());
  lease.SayHello(own.get(), "no such lease");
  v1::MapSessionResponse response;
  EXPECT_TRUE(victim->Map(session_.id(), v1::MAP_ACCESS_READ, &response).ok());
  EXPECT_EQ(lease.Map(session_.id(), v1::MAP_ACCESS_READ, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(HostileLeaseTest, MapWithoutALifeSocket) {
  RawLease lease(&daemon_.stub(), 1, "one");
  EXPECT_EQ(lease.Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(HostileLeaseTest, WrongEpoch) {
  const auto lease = Attached();
  v1::MapSessionRequest request;
  request.set_lease_id(lease->lease().lease_id());
  request.set_epoch(lease->lease().epoch() + 1);
  request.set_session_id(session_.id());
  request.set_access(v1::MAP_ACCESS_READ);
  const grpc::Status status = lease->Map(request, &mapped_);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  for (const uint64_t epoch : {lease->lease().epoch(), lease->lease().epoch() + 1}) {
    EXPECT_TRUE(absl::StrContains(status.error_message(),
                                  absl::StrCat(absl::Hex(epoch, absl::kZeroPad16))));
  }
  v1::CommitRequest commit = lease->CommitOf(session_.id(), 1, 1);
  commit.set_epoch(0);
  EXPECT_EQ(lease->Commit(commit).error_code(), StatusCode::FAILED_PRECONDITION);
  // TruncateSession is for clients without a lease as well, who know no epoch.
  v1::TruncateSessionRequest truncate;
  truncate.set_session_id(session_.id());
  truncate.set_generation(1);
  v1::TruncateSessionResponse truncated;
  truncate.set_epoch(lease->lease().epoch() + 1);
  Context wrong("one"), none("one");
  EXPECT_EQ(daemon_.stub().TruncateSession(wrong.get(), truncate, &truncated).error_code(),
            StatusCode::FAILED_PRECONDITION);
  truncate.set_epoch(0);
  EXPECT_TRUE(daemon_.stub().TruncateSession(none.get(), truncate, &truncated).ok());
}

TEST_F(HostileLeaseTest, AnotherTenantsLeaseAndSession) {
  const auto lease = Attached();
  EXPECT_EQ(lease->Map(neighbour_.id(), v1::MAP_ACCESS_READ, &mapped_).error_code(),
            StatusCode::NOT_FOUND);
  RawLease thief(&daemon_.stub(), 1, "two");
  v1::MapSessionRequest request;
  request.set_lease_id(lease->lease().lease_id());
  request.set_epoch(lease->lease().epoch());
  request.set_session_id(neighbour_.id());
  request.set_access(v1::MAP_ACCESS_READ);
  EXPECT_EQ(thief.Map(request, &mapped_).error_code(), StatusCode::NOT_FOUND);
}

TEST_F(HostileLeaseTest, CommitsThatAreNotTheWriters) {
  const auto reader = Attached();
  EXPECT_EQ(reader->Commit(reader->CommitOf(session_.id(), 1, 0)).error_code(),
            StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(reader->Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).ok());
  EXPECT_EQ(reader->Commit(reader->CommitOf(session_.id(), 1, 1)).error_code(),
            StatusCode::FAILED_PRECONDITION);
  const auto writer = Attached();
  v1::MapSessionResponse response;
  ASSERT_TRUE(writer->Map(session_.id(), v1::MAP_ACCESS_WRITE, &response).ok());
  EXPECT_EQ(reader->Commit(reader->CommitOf(session_.id(), 1, 1)).error_code(),
            StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(reader->Map(session_.id(), v1::MAP_ACCESS_WRITE, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
  // A reader is not told where the writer writes.
  ASSERT_TRUE(reader->Map(session_.id(), v1::MAP_ACCESS_READ, &response).ok());
  for (const v1::MappedLayer& layer : response.directory().layers()) {
    EXPECT_EQ(layer.room_size(), 0);
  }
}

TEST_F(HostileLeaseTest, CommitBeyondTheRoomOrBackwards) {
  const auto writer = Attached();
  ASSERT_TRUE(writer->Map(session_.id(), v1::MAP_ACCESS_WRITE, &mapped_).ok());
  uint64_t room = 0;
  for (const v1::MappedExtent& extent : mapped_.directory().layers(0).room()) {
    room += extent.capacity();
  }
  for (const uint64_t count : {room + 1, std::numeric_limits<uint64_t>::max()}) {
    EXPECT_EQ(writer->Commit(writer->CommitOf(session_.id(), 1, count)).error_code(),
              StatusCode::OUT_OF_RANGE);
  }
  CommitZeros(writer.get(), 1, room);
  EXPECT_EQ(writer->Commit(writer->CommitOf(session_.id(), 1, room - 1)).error_code(),
            StatusCode::OUT_OF_RANGE);
  CommitZeros(writer.get(), 1, room);
  EXPECT_EQ(daemon_.GetSession(session_.id()).committed_token_count(), room);
}

TEST_F(HostileLeaseTest, OldGeneration) {
  const auto writer = Attached();
  ASSERT_TRUE(writer->Map(session_.id(), v1::MAP_ACCESS_WRITE, &mapped_).ok());
  CommitZeros(writer.get(), 1, 20);
  v1::TruncateSessionRequest request;
  request.set_session_id(session_.id());
  request.set_generation(1);
  request.set_token_count(5);
  v1::TruncateSessionResponse response;
  Context without("one");
  EXPECT_EQ(daemon_.stub().TruncateSession(without.get(), request, &response).error_code(),
            StatusCode::FAILED_PRECONDITION);
  request.set_lease_id(writer->lease().lease_id());
  Context with("one");
  EXPECT_TRUE(daemon_.stub().TruncateSession(with.get(), request, &response).ok());
  EXPECT_EQ(writer->Commit(writer->CommitOf(session_.id(), 1, 20)).error_code(),
            StatusCode::ABORTED);
  // Its room is gone with what it may have queued there.
  EXPECT_EQ(writer->Commit(writer->CommitOf(session_.id(), 2, 200)).error_code(),
            StatusCode::OUT_OF_RANGE);
}

TEST_F(HostileLeaseTest, TokensThatAreNotFinite) {
  const auto writer = Attached();
  ASSERT_TRUE(writer->Map(session_.id(), v1::MAP_ACCESS_WRITE, &mapped_).ok());
  const v1::MappedExtent& room = mapped_.directory().layers(1).room(1);
  std::byte* const extent = writer->Region(room.slab())->data() + room.offset();
  // Layer 1, slot 3 of the second extent is token 19: V of head 1, channel 5.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(extent + 4 * ((3 * 64 + 3) * kHeadDim + 5), &nan, sizeof(nan));
  const grpc::Status status = writer->Commit(writer->CommitOf(session_.id(), 1, 30));
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StartsWith(status.error_message(), "layers[1].kv_heads[1].v"))
      << status.error_message();
  EXPECT_EQ(daemon_.GetSession(session_.id()).committed_token_count(), 0u);
  CommitZeros(writer.get(), 1, 19);
}

TEST_F(HostileLeaseTest, ATenantThatMayNotMapGetsNoLease) {
  RawLease lease(&daemon_.stub(), 1, "three");
  EXPECT_FALSE(lease.opened());
  const grpc::Status status = lease.WaitForEnd();
  EXPECT_EQ(status.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(status.error_message(),
            "tenant: third, is none of the daemon's mapping_tenants, who map sessions");
  // Everything else is as for others.
  daemon_.CallAs("three");
  const v1::Session session = daemon_.CreateSession("chat");
  EXPECT_TRUE(daemon_.AppendTokens(session, 0, 10).ok());
  daemon_.CallAs("one");
}

TEST_F(HostileLeaseTest, UnmapTwiceAndRetireWhatWasNotShown) {
  const auto lease = Attached();
  EXPECT_EQ(lease->Unmap(session_.id()).error_code(), StatusCode::NOT_FOUND);
  ASSERT_TRUE(lease->Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).ok());
  EXPECT_TRUE(lease->Unmap(session_.id()).ok());
  EXPECT_EQ(lease->Unmap(session_.id()).error_code(), StatusCode::NOT_FOUND);
  // A retirement may cross an unmapping.
  lease->Retire(session_.id(), 1);
  ASSERT_TRUE(lease->Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).ok());
  lease->Retire(session_.id(), mapped_.directory().version() + 1);
  EXPECT_EQ(lease->WaitForEnd().error_code(), StatusCode::OUT_OF_RANGE);
  EXPECT_EQ(lease->Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).error_code(),
            StatusCode::FAILED_PRECONDITION);
}

TEST_F(HostileLeaseTest, UnmapsASlabThatItHasNot) {
  const auto lease = Attached();
  v1::OpenLeaseRequest request;
  request.mutable_unmapped()->add_slabs(12345);
  lease->Send(request);
  EXPECT_EQ(lease->WaitForEnd().error_code(), StatusCode::NOT_FOUND);
}

TEST_F(HostileLeaseTest, NeverRetires) {
  const auto writer = Attached();
  ASSERT_TRUE(writer->Map(session_.id(), v1::MAP_ACCESS_WRITE, &mapped_).ok());
  for (uint64_t count = 1; count <= 3; ++count) CommitZeros(writer.get(), 1, count);
  const grpc::Status status = writer->Commit(writer->CommitOf(session_.id(), 1, 4));
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(absl::StartsWith(status.error_message(), "directory_versions_max: 4 of 4"));
  EXPECT_EQ(daemon_.GetSession(session_.id()).committed_token_count(), 3u);
  writer->Retire(session_.id(), 4);
  grpc::Status next;
  do {
    next = writer->Commit(writer->CommitOf(session_.id(), 1, 4));
  } while (next.error_code() == StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(next.ok()) << next.error_message();
}

// The writer may write to tails that are committed: what it does to them while the daemon seals is
// its own loss.
TEST_F(HostileLeaseTest, ChangesCommittedBytesWhileTheyAreSealed) {
  constexpr float kPoison[] = {std::numeric_limits<float>::quiet_NaN(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::max(),
                               -3e38f,
                               1e-45f};
  const v1::Session session = daemon_.CreateSession("planes", v1::CODEC_PLANES);
  const auto writer = Attached();
  v1::MapSessionRequest request;
  request.set_lease_id(writer->lease().lease_id());
  request.set_epoch(writer->lease().epoch());
  request.set_session_id(session.id());
  request.set_access(v1::MAP_ACCESS_WRITE);
  request.set_room_tokens(1000);
  ASSERT_TRUE(writer->Map(request, &mapped_).ok());
  // In order of position, for each layer.
  std::vector<std::vector<absl::Span<float>>> rooms;
  for (const v1::MappedLayer& layer : mapped_.directory().layers()) {
    rooms.emplace_back();
    for (const v1::MappedExtent& extent : layer.room()) {
      MappedRegion* const region = writer->Region(extent.slab());
      ASSERT_NE(region, nullptr);
      rooms.back().emplace_back(reinterpret_cast<float*>(region->data() + extent.offset()),
                                extent.size_bytes() / sizeof(float));
    }
  }
  std::atomic<size_t> committed_extents{0};
  std::atomic<bool> stopping{false};
  std::atomic<uint64_t> written{0};
  std::thread poisoner([&] {
    for (size_t round = 0; !stopping; ++round) {
      for (const std::vector<absl::Span<float>>& room : rooms) {
        const size_t end = std::min(committed_extents.load(), room.size());
        for (size_t i = 0; i < end; ++i) {
          for (size_t k = round % 7; k < room[i].size(); k += 7) {
            room[i][k] = kPoison[(round + k) % std::size(kPoison)];
            ++written;
          }
        }
      }
    }
  });
  // The sinks, then 64 tokens at a time: zeros, until they are committed.
  for (uint64_t count = 16; count <= 16 + 14 * 64; count += 64) {
    v1::CommitResponse response;
    grpc::Status status;
    do {
      status = writer->Commit(writer->CommitOf(session.id(), 1, count), &response);
    } while (status.error_code() == StatusCode::RESOURCE_EXHAUSTED);
    ASSERT_TRUE(status.ok()) << status.error_message();
    writer->Retire(session.id(), response.directory().version());
    ++committed_extents;
    daemon_.CallAs("two");
    v1::AttendResponse sees;
    EXPECT_TRUE(daemon_.Attend(AttendOf(neighbour_, 0, Queries(1, 1)), &sees).ok());
    EXPECT_EQ(sees.items(0).output(), neighbour_sees_.items(0).output());
    daemon_.CallAs("one");
  }
  stopping = true;
  poisoner.join();
  EXPECT_GT(written.load(), 0u);
  const v1::Session after = daemon_.GetSession(session.id());
  EXPECT_EQ(after.committed_token_count(), 16u + 14 * 64);
  EXPECT_GE(after.layer_states(0).sealed_end(), 256u);
  for (int layer = 0; layer < kLayers; ++layer) {
    v1::FetchRequest fetch;
    fetch.set_session_id(session.id());
    fetch.set_layer(static_cast<uint32_t>(layer));
    fetch.set_token_count(after.committed_token_count());
    fetch.set_dtype(v1::DTYPE_FP32);
    v1::TokenChunk tokens;
    const grpc::Status fetched = daemon_.Fetch(fetch, &tokens);
    const grpc::Status attended = daemon_.Attend(AttendOf(after, layer, Queries(1, 1)));
    std::cerr << "layer " << layer << ", " << written << " values poisoned, sealed to "
              << after.layer_states(layer).sealed_end() << ": Fetch " << fetched.error_code()
              << " with " << tokens.k().size() << " bytes, Attend " << attended.error_code()
              << "\n";
    EXPECT_TRUE(fetched.ok() || fetched.error_code() == StatusCode::DATA_LOSS)
        << fetched.error_message();
    if (fetched.ok()) {
      EXPECT_EQ(tokens.k().size(), (16 + 14 * 64) * kRowValues * sizeof(float));
    }
    // Whatever the keys are, q.k is finite or the query is refused: for the tail, or for what was
    // sealed while it changed.
    EXPECT_TRUE(attended.ok() ||
                (attended.error_code() == StatusCode::DATA_LOSS &&
                 absl::StrContains(attended.error_message(), "tail: ")) ||
                (attended.error_code() == StatusCode::INVALID_ARGUMENT &&
                 absl::StrContains(attended.error_message(), "logit")))
        << attended.error_message();
  }
}

TEST_F(HostileLeaseTest, TooMuchRoom) {
  const auto writer = Attached();
  v1::MapSessionRequest request;
  request.set_lease_id(writer->lease().lease_id());
  request.set_epoch(writer->lease().epoch());
  request.set_session_id(session_.id());
  request.set_access(v1::MAP_ACCESS_WRITE);
  request.set_room_tokens(1001);
  EXPECT_EQ(writer->Map(request, &mapped_).error_code(), StatusCode::INVALID_ARGUMENT);
  request.set_room_tokens(0);
  request.set_access(v1::MAP_ACCESS_UNSPECIFIED);
  EXPECT_EQ(writer->Map(request, &mapped_).error_code(), StatusCode::INVALID_ARGUMENT);
}

TEST_F(HostileLeaseTest, TenThousandLeases) {
  std::vector<std::unique_ptr<RawLease>> leases;
  for (int i = 0; i < 10000; ++i) {
    auto lease = std::make_unique<RawLease>(&daemon_.stub(), 1, "one");
    if (lease->opened()) {
      leases.push_back(std::move(lease));
    } else {
      const grpc::Status status = lease->WaitForEnd();
      ASSERT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
      ASSERT_TRUE(absl::StartsWith(status.error_message(), "leases_per_tenant_max: 8 of 8"));
    }
  }
  EXPECT_EQ(leases.size(), 8u);
}

TEST_F(HostileLeaseTest, ManyConnectionsThatSayNothing) {
  RawLease lease(&daemon_.stub(), 1, "one");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string& path = lease.lease().life_socket();
  std::memcpy(address.sun_path, path.data(), path.size());
  std::vector<FileDescriptor> sockets;
  for (int i = 0; i < 300; ++i) {
    sockets.emplace_back(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ASSERT_EQ(
        connect(sockets.back().get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
        0);
    // Some say nonsense instead.
    if (i % 3 == 0) {
      EXPECT_EQ(send(sockets.back().get(), "x", 1, MSG_NOSIGNAL), 1);
    }
  }
  lease.Attach();
  EXPECT_TRUE(lease.Map(session_.id(), v1::MAP_ACCESS_READ, &mapped_).ok());
}

}  // namespace
}  // namespace kvdepot
