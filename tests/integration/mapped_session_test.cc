// Mapped sessions against a whole daemon: what the writer and readers compute over mapped bytes is
// what the tokens say, whatever the daemon seals, and what goes wrong raises the flag or has its
// code.
#include "client/mapped_session.h"

#include <limits>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

class MappedSessionTest : public ::testing::Test {
 protected:
  std::shared_ptr<Lease> OpenLease() {
    auto lease = Lease::Open(daemon_.server().addresses()[0], {}, Soon());
    EXPECT_TRUE(lease.ok()) << lease.status();
    return lease.ok() ? *lease : nullptr;
  }
  std::unique_ptr<MappedSession> Open(const std::shared_ptr<Lease>& lease, const std::string& id,
                                      MapAccess access, uint32_t room_tokens = 0) {
    auto session = MappedSession::Open(lease, id, {access, room_tokens}, Soon());
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }
  // One token of every layer, attended to; the largest error.
  double Decode(MappedSession* session) {
    double error = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      const int position = static_cast<int>(session->token_count(layer));
      const MappedTokens token(layer, position, 1);
      MappedQuery query(position);
      EXPECT_TRUE(stream_.AppendAttend(layer, 0, {query.Of(session, &token)}).ok());
      error = std::max(error, query.ErrorOver(layer, position + 1));
    }
    return error;
  }
  double Attend(MappedSession* session) {
    double error = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery query(7);
      EXPECT_TRUE(stream_.Attend(layer, 0, {query.Of(session)}).ok());
      error =
          std::max(error, query.ErrorOver(layer, static_cast<int>(session->token_count(layer))));
    }
    return error;
  }

  TestDaemon daemon_{InHostMemory};
  MappedStream stream_{1};
};

TEST_F(MappedSessionTest, WriterAndReaderSeeTheTokensWhateverIsSealed) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto writer_lease = OpenLease();
  const auto reader_lease = OpenLease();
  const auto writer = Open(writer_lease, created.id(), MapAccess::kWrite);
  const auto reader = Open(reader_lease, created.id(), MapAccess::kRead);
  EXPECT_EQ(reader->committed_token_count(), 0u);
  for (int step = 1; step <= 900; ++step) {
    ASSERT_LT(Decode(writer.get()), 1e-4) << step;
    if (step % 50 != 0) continue;
    ASSERT_TRUE(writer->Commit(Soon()).ok());
    EXPECT_EQ(writer->committed_token_count(), static_cast<uint64_t>(step));
    ASSERT_TRUE(reader->Refresh(Soon()).ok());
    EXPECT_EQ(reader->committed_token_count(), static_cast<uint64_t>(step));
    ASSERT_LT(Attend(reader.get()), 1e-4) << step;
  }
  EXPECT_GT(daemon_.GetSession(created.id()).layer_states(0).sealed_end(), 256u);
}

// The daemon's results over segments of a codec, to the last bit.
class MappedCodecTest : public MappedSessionTest,
                        public ::testing::WithParamInterface<v1::Codec> {};
INSTANTIATE_TEST_SUITE_P(Codecs, MappedCodecTest,
                         ::testing::Values(v1::CODEC_PLANES, v1::CODEC_PACKKV));

TEST_P(MappedCodecTest, ItComputesWhatTheDaemonComputes) {
  const v1::Session created = daemon_.CreateSession("chat", GetParam());
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite, 1024);
  for (int round = 0; round < 3; ++round) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const MappedTokens tokens(layer, 700 * round, 700);
      ASSERT_TRUE(session->Append(layer, tokens.tokens()).ok());
    }
    ASSERT_TRUE(session->error().ok()) << session->error();
    // The second one shows what the first has sealed.
    for (int i = 0; i < 2; ++i) {
      const absl::Status committed = session->Commit(Soon());
      ASSERT_TRUE(committed.ok()) << committed;
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery query(3);
      ASSERT_TRUE(stream_.Attend(layer, 0, {query.Of(session.get())}).ok());
      v1::AttendResponse response;
      ASSERT_TRUE(daemon_.Attend(AttendOf(created, layer, Queries(3, 1)), &response).ok());
      EXPECT_EQ(Bytes(query.output()), response.items(0).output());
      EXPECT_EQ(Bytes(query.log_sum_exp()), response.items(0).log_sum_exp());
    }
  }
  EXPECT_GT(daemon_.GetSession(created.id()).layer_states(0).sealed_end(), 1500u);
}

TEST_F(MappedSessionTest, AReaderKeepsWhatItSawUntilItRefreshes) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto writer = Open(lease, created.id(), MapAccess::kWrite, 1024);
  const auto reader_lease = OpenLease();
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(writer->Append(layer, MappedTokens(layer, 0, 100).tokens()).ok());
  }
  ASSERT_TRUE(writer->Commit(Soon()).ok());
  const auto reader = Open(reader_lease, created.id(), MapAccess::kRead);
  for (int layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(writer->Append(layer, MappedTokens(layer, 100, 800).tokens()).ok());
  }
  ASSERT_TRUE(writer->Commit(Soon()).ok());
  EXPECT_LT(Attend(reader.get()), 1e-4);
  EXPECT_EQ(reader->committed_token_count(), 100u);
  ASSERT_TRUE(writer->Truncate(40, Soon()).ok());
  EXPECT_EQ(writer->generation(), 2u);
  for (int layer = 0; layer < kLayers; ++layer) {
    // Other tokens than before at the same positions: the old directory must not see them.
    ASSERT_TRUE(writer->Append(layer, MappedTokens(layer, 5000, 200).tokens()).ok());
  }
  ASSERT_TRUE(writer->Commit(Soon()).ok());
  EXPECT_LT(Attend(reader.get()), 1e-4);
  ASSERT_TRUE(reader->Refresh(Soon()).ok());
  EXPECT_EQ(reader->committed_token_count(), 240u);
}

TEST_F(MappedSessionTest, UncommittedTokensAreDroppedWithoutTheDaemon) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  for (int step = 0; step < 30; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
  ASSERT_TRUE(session->Commit(Soon()).ok());
  for (int step = 0; step < 5; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
  ASSERT_TRUE(session->Truncate(32, Soon()).ok());
  EXPECT_EQ(session->generation(), 1u);
  EXPECT_EQ(session->token_count(0), 32u);
  ASSERT_LT(Decode(session.get()), 1e-4);
  EXPECT_EQ(session->Truncate(34, Soon()).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(MappedSessionTest, TokensOfACommitWithoutAnswerAreNotDroppedWithoutTheDaemon) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  for (int step = 0; step < 5; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
  // Its time is over before it can be answered; the daemon may have it nevertheless.
  ASSERT_EQ(session->Commit(absl::Now() - absl::Seconds(1)).code(),
            absl::StatusCode::kDeadlineExceeded);
  ASSERT_LT(Decode(session.get()), 1e-4);
  ASSERT_TRUE(session->Truncate(5, Soon()).ok()) << "the sixth token was in no commit";
  const absl::Status refused = session->Truncate(3, Soon());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_EQ(session->token_count(0), 5u);

  ASSERT_TRUE(session->Commit(Soon()).ok());
  ASSERT_TRUE(session->Truncate(3, Soon()).ok());
  EXPECT_EQ(session->committed_token_count(), 3u);
  EXPECT_LT(Decode(session.get()), 1e-4);
}

TEST_F(MappedSessionTest, WithoutRoomTheFlagRisesAndNothingIsWritten) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite, 40);
  // The first extent holds 16, the second 64.
  EXPECT_EQ(session->room_tokens(), 80u);
  for (int step = 0; step < 80; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
  const MappedTokens token(0, 80, 1);
  MappedQuery query(1);
  ASSERT_TRUE(stream_.AppendAttend(0, 0, {query.Of(session.get(), &token)}).ok());
  EXPECT_TRUE(query.is_nan());
  EXPECT_EQ(session->token_count(0), 80u);
  EXPECT_EQ(session->error().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(session->Commit(Soon()).code(), absl::StatusCode::kResourceExhausted);
  MappedQuery again(2);
  ASSERT_TRUE(stream_.Attend(0, 0, {again.Of(session.get())}).ok());
  EXPECT_TRUE(again.is_nan());
  session->ClearError();
  EXPECT_LT(Attend(session.get()), 1e-4);
  ASSERT_TRUE(session->Commit(Soon()).ok());
  for (int step = 0; step < 40; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
}

TEST_F(MappedSessionTest, ATokenThatIsNotFiniteRaisesTheFlag) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  ASSERT_LT(Decode(session.get()), 1e-4);
  MappedTokens token(0, 1, 1);
  const float infinity = std::numeric_limits<float>::infinity();
  token.v.replace(4, 4, reinterpret_cast<const char*>(&infinity), 4);
  MappedQuery query(1);
  ASSERT_TRUE(stream_.AppendAttend(0, 0, {query.Of(session.get(), &token)}).ok());
  EXPECT_TRUE(query.is_nan());
  EXPECT_EQ(session->Commit(Soon()).code(), absl::StatusCode::kInvalidArgument);
  session->ClearError();
  EXPECT_LT(Decode(session.get()), 1e-4);
  EXPECT_TRUE(session->Commit(Soon()).ok());
}

TEST_F(MappedSessionTest, OneLeaseWritesAndNobodyElseChangesTheSession) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  const auto other = OpenLease();
  auto writer = Open(lease, created.id(), MapAccess::kWrite);
  EXPECT_EQ(
      MappedSession::Open(other, created.id(), {MapAccess::kWrite, 0}, Soon()).status().code(),
      absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(daemon_.AppendTokens(created, 0, 1).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  const auto reader = Open(other, created.id(), MapAccess::kRead);
  EXPECT_EQ(reader->Append(0, MappedTokens(0, 0, 1).tokens()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(reader->Commit(Soon()).code(), absl::StatusCode::kFailedPrecondition);
  writer = nullptr;
  EXPECT_TRUE(daemon_.AppendTokens(created, 0, 1).ok());
  ASSERT_TRUE(reader->Refresh(Soon()).ok());
  EXPECT_EQ(reader->committed_token_count(), 1u);
  EXPECT_LT(Attend(reader.get()), 1e-4);
}

TEST_F(MappedSessionTest, ADeletedSessionStaysReadableAndItsMemoryGoesWithTheMapping) {
  const v1::Session created = daemon_.CreateSession("chat");
  const auto lease = OpenLease();
  auto session = Open(lease, created.id(), MapAccess::kWrite);
  for (int step = 0; step < 100; ++step) ASSERT_LT(Decode(session.get()), 1e-4);
  ASSERT_TRUE(session->Commit(Soon()).ok());
  v1::DeleteSessionRequest request;
  request.set_session_id(created.id());
  v1::DeleteSessionResponse response;
  Context context;
  ASSERT_TRUE(daemon_.stub().DeleteSession(context.get(), request, &response).ok());
  while (!lease->IsUnmapWanted(created.id())) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_LT(Attend(session.get()), 1e-4);
  EXPECT_EQ(session->Commit(Soon()).code(), absl::StatusCode::kNotFound);
  v1::GetServerInfoRequest info_request;
  v1::GetServerInfoResponse info;
  Context before;
  ASSERT_TRUE(daemon_.stub().GetServerInfo(before.get(), info_request, &info).ok());
  EXPECT_GT(info.used_bytes(), 0u);
  session = nullptr;
  Context after;
  ASSERT_TRUE(daemon_.stub().GetServerInfo(after.get(), info_request, &info).ok());
  EXPECT_EQ(info.used_bytes(), 0u);
}

}  // namespace
}  // namespace kvdepot
