// Mapped sessions on a GPU, against a whole daemon: what kernels of the client compute over mapped
// bytes is what the tokens say, in graphs that are captured once, whatever the daemon seals; and
// what goes wrong raises the flag or has its code.
#include "client/cuda_mapped_stream.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/gpu/device_array.h"
#include "tests/integration/device_token.h"
#include "tests/integration/mapped_tokens.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// bf16 of the daemon's reply and int8 queries of the kernel (DESIGN 5) leave more than the CPU
// does.
constexpr double kErrorMax = 2e-3;

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

void Check(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

class CudaMappedStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVDEPOT_REQUIRE_CUDA_DEVICE();
    const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
    if (device != nullptr && std::string(device) == "cpu") GTEST_SKIP() << "a test of the GPU";
    Serve("descriptor");
  }
  void Serve(const std::string& handles) {
    daemon_ = std::make_unique<TestDaemon>([&](Options& options, const std::string&) {
      options.device = "cuda:0";
      options.slab_handles = handles;
      options.memory_budget.bytes = uint64_t{1} << 30;
      options.slab_bytes = 4 * kSlabGranularityBytes;
    });
    Check(cudaStreamCreateWithFlags(&cuda_stream_, cudaStreamNonBlocking));
    stream_ = NewStream(cuda_stream_);
  }
  void TearDown() override {
    stream_ = nullptr;
    if (cuda_stream_ != nullptr) cudaStreamDestroy(cuda_stream_);
  }
  static std::unique_ptr<CudaMappedStream> NewStream(cudaStream_t cuda_stream) {
    auto stream = CudaMappedStream::Create(cuda_stream);
    EXPECT_TRUE(stream.ok()) << stream.status();
    return stream.ok() ? *std::move(stream) : nullptr;
  }
  std::shared_ptr<Lease> OpenLease() {
    auto lease = Lease::Open(daemon_->server().addresses()[0], {}, Soon());
    EXPECT_TRUE(lease.ok()) << lease.status();
    return lease.ok() ? *lease : nullptr;
  }
  std::unique_ptr<MappedSession> Open(const std::shared_ptr<Lease>& lease, const std::string& id,
                                      MapAccess access, uint32_t room_tokens = 0) {
    auto session = MappedSession::Open(lease, id, {access, room_tokens}, Soon());
    EXPECT_TRUE(session.ok()) << session.status();
    return session.ok() ? *std::move(session) : nullptr;
  }
  void ExpectWhatTheDaemonComputes(v1::Codec codec);
  // Runs `calls` in a capture.
  cudaGraphExec_t Capture(const std::function<void()>& calls) {
    Check(cudaStreamBeginCapture(cuda_stream_, cudaStreamCaptureModeGlobal));
    calls();
    cudaGraph_t graph = nullptr;
    Check(cudaStreamEndCapture(cuda_stream_, &graph));
    cudaGraphExec_t exec = nullptr;
    Check(cudaGraphInstantiate(&exec, graph, 0));
    cudaGraphDestroy(graph);
    return exec;
  }
  void Replay(cudaGraphExec_t graph) {
    Check(cudaGraphLaunch(graph, cuda_stream_));
    Check(cudaStreamSynchronize(cuda_stream_));
  }
  // Sets tokens of all layers at `position`, replays, and says how far the outputs are off.
  double DecodeBy(cudaGraphExec_t graph, int position) {
    std::vector<MappedQuery> queries;
    for (int layer = 0; layer < kLayers; ++layer) {
      queries.emplace_back(position);
      tokens_[layer].SetTokens(MappedTokens(layer, position, 1));
      tokens_[layer].SetQuery(queries.back());
    }
    Replay(graph);
    double error = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery& query = queries[static_cast<size_t>(layer)];
      tokens_[layer].Get(&query);
      error = std::max(error, query.ErrorOver(layer, position + 1));
    }
    return error;
  }
  double AttendBy(cudaGraphExec_t graph, int seed, int token_count) {
    std::vector<MappedQuery> queries;
    for (int layer = 0; layer < kLayers; ++layer) {
      queries.emplace_back(seed);
      tokens_[layer].SetQuery(queries.back());
    }
    Replay(graph);
    double error = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery& query = queries[static_cast<size_t>(layer)];
      tokens_[layer].Get(&query);
      error = std::max(error, query.ErrorOver(layer, token_count));
    }
    return error;
  }
  cudaGraphExec_t CaptureDecode(MappedSession* session) {
    return Capture([&] {
      for (int layer = 0; layer < kLayers; ++layer) {
        const absl::Status status =
            stream_->AppendAttend(static_cast<size_t>(layer), 0, {tokens_[layer].Of(session)});
        EXPECT_TRUE(status.ok()) << status;
      }
    });
  }
  cudaGraphExec_t CaptureAttend(MappedSession* session) {
    return Capture([&] {
      for (int layer = 0; layer < kLayers; ++layer) {
        const absl::Status status =
            stream_->Attend(static_cast<size_t>(layer), 0, {tokens_[layer].Of(session)});
        EXPECT_TRUE(status.ok()) << status;
      }
    });
  }
  void Append(MappedSession* session, int position, int count) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const MappedTokens tokens(layer, position, count);
      const DeviceArray<char> k(std::vector<char>(tokens.k.begin(), tokens.k.end()));
      const DeviceArray<char> v(std::vector<char>(tokens.v.begin(), tokens.v.end()));
      const absl::Status status = stream_->Append(
          session, static_cast<size_t>(layer), reinterpret_cast<const std::byte*>(k.data()),
          reinterpret_cast<const std::byte*>(v.data()), count);
      ASSERT_TRUE(status.ok()) << status;
      Check(cudaStreamSynchronize(cuda_stream_));
    }
  }
  absl::Status CommitAndWait(MappedSession* session, uint32_t room_tokens = 0) {
    absl::Status status = stream_->Commit(session, room_tokens);
    if (status.ok()) status = stream_->Wait(session, Soon());
    if (status.ok()) status = stream_->Refresh(session);
    return status;
  }

  std::unique_ptr<TestDaemon> daemon_;
  cudaStream_t cuda_stream_ = nullptr;
  std::unique_ptr<CudaMappedStream> stream_;
  std::unique_ptr<DeviceToken[]> tokens_ =
      HasCudaDevice() ? std::make_unique<DeviceToken[]>(kLayers) : nullptr;
};

TEST_F(CudaMappedStreamTest, OneGraphServesWhileTheSessionGrowsAndIsSealed) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  ASSERT_TRUE(stream_->Refresh(session.get()).ok());
  const cudaGraphExec_t graph = CaptureDecode(session.get());
  for (int position = 0; position < 900; ++position) {
    ASSERT_LT(DecodeBy(graph, position), kErrorMax) << position;
    if (position % 50 != 49) continue;
    const absl::Status committed = CommitAndWait(session.get());
    ASSERT_TRUE(committed.ok()) << committed;
    EXPECT_EQ(session->committed_token_count(), static_cast<uint64_t>(position) + 1);
  }
  EXPECT_GT(daemon_->GetSession(created.id()).layer_states(0).sealed_end(), 256u);
  cudaGraphExecDestroy(graph);
}

TEST_F(CudaMappedStreamTest, AReadersGraphSeesWhatIsCommittedAfterRefresh) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto writer = Open(lease, created.id(), MapAccess::kWrite, 1024);
  Append(writer.get(), 0, 100);
  ASSERT_TRUE(CommitAndWait(writer.get()).ok());
  const auto reader_lease = OpenLease();
  const auto reader = Open(reader_lease, created.id(), MapAccess::kRead);
  ASSERT_TRUE(stream_->Refresh(reader.get()).ok());
  const cudaGraphExec_t graph = CaptureAttend(reader.get());
  EXPECT_LT(AttendBy(graph, 1, 100), kErrorMax);
  Append(writer.get(), 100, 800);
  ASSERT_TRUE(CommitAndWait(writer.get()).ok());
  EXPECT_LT(AttendBy(graph, 2, 100), kErrorMax) << "it sees no token before it refreshes";
  ASSERT_TRUE(reader->Refresh(Soon()).ok());
  EXPECT_LT(AttendBy(graph, 3, 100), kErrorMax) << "nor before the stream does";
  ASSERT_TRUE(stream_->Refresh(reader.get()).ok());
  EXPECT_LT(AttendBy(graph, 4, 900), kErrorMax);
  cudaGraphExecDestroy(graph);
}

void CudaMappedStreamTest::ExpectWhatTheDaemonComputes(v1::Codec codec) {
  const v1::Session created = daemon_->CreateSession("chat", codec);
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite, 1024);
  ASSERT_TRUE(stream_->Refresh(session.get()).ok());
  // Captured while there is no segment and no calibration yet.
  const cudaGraphExec_t graph = CaptureAttend(session.get());
  for (int round = 0; round < 3; ++round) {
    Append(session.get(), 700 * round, 700);
    // The second one shows what the first has sealed.
    for (int i = 0; i < 2; ++i) {
      const absl::Status committed = CommitAndWait(session.get());
      ASSERT_TRUE(committed.ok()) << committed;
    }
    AttendBy(graph, 3, 1);
    for (int layer = 0; layer < kLayers; ++layer) {
      MappedQuery query(3);
      tokens_[layer].Get(&query);
      v1::AttendResponse response;
      ASSERT_TRUE(daemon_->Attend(AttendOf(created, layer, Queries(3, 1)), &response).ok());
      const std::vector<float> expected = Floats(response.items(0).output());
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(query.output()[i], expected[i], 1e-3) << i;
      }
    }
  }
  EXPECT_GT(daemon_->GetSession(created.id()).layer_states(0).sealed_end(), 1500u);
  cudaGraphExecDestroy(graph);
}

TEST_F(CudaMappedStreamTest, OverPlanesItComputesWhatTheDaemonComputes) {
  ExpectWhatTheDaemonComputes(v1::CODEC_PLANES);
}

TEST_F(CudaMappedStreamTest, OverPackKvItComputesWhatTheDaemonComputes) {
  ExpectWhatTheDaemonComputes(v1::CODEC_PACKKV);
}

TEST_F(CudaMappedStreamTest, TokensDroppedBeforeACommitCostNoCall) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  ASSERT_TRUE(stream_->Refresh(session.get()).ok());
  const cudaGraphExec_t graph = CaptureDecode(session.get());
  for (int position = 0; position < 30; ++position) ASSERT_LT(DecodeBy(graph, position), kErrorMax);
  ASSERT_TRUE(CommitAndWait(session.get()).ok());
  for (int position = 30; position < 100; ++position) {
    ASSERT_LT(DecodeBy(graph, position), kErrorMax);
  }
  ASSERT_TRUE(stream_->Truncate(session.get(), 32, Soon()).ok());
  EXPECT_EQ(session->generation(), 1u);
  ASSERT_LT(DecodeBy(graph, 32), kErrorMax);
  ASSERT_TRUE(CommitAndWait(session.get()).ok());
  EXPECT_EQ(session->committed_token_count(), 33u);
  ASSERT_TRUE(stream_->Truncate(session.get(), 20, Soon()).ok());
  EXPECT_EQ(session->generation(), 2u);
  ASSERT_LT(DecodeBy(graph, 20), kErrorMax);
  ASSERT_TRUE(CommitAndWait(session.get()).ok());
  EXPECT_EQ(session->committed_token_count(), 21u);
  cudaGraphExecDestroy(graph);
}

TEST_F(CudaMappedStreamTest, WithoutRoomTheFlagRisesAndNothingIsWritten) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite, 40);
  ASSERT_TRUE(stream_->Refresh(session.get()).ok());
  const cudaGraphExec_t graph = CaptureDecode(session.get());
  for (int position = 0; position < 80; ++position) ASSERT_LT(DecodeBy(graph, position), kErrorMax);
  DecodeBy(graph, 80);
  for (int layer = 0; layer < kLayers; ++layer) {
    MappedQuery query(80);
    tokens_[layer].Get(&query);
    EXPECT_TRUE(query.is_nan());
  }
  ASSERT_TRUE(stream_->Commit(session.get(), 0).ok());
  const absl::Status full = stream_->Wait(session.get(), Soon());
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(stream_->Commit(session.get(), 0).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(stream_->ClearError(session.get()).ok());
  ASSERT_TRUE(CommitAndWait(session.get()).ok());
  EXPECT_EQ(session->committed_token_count(), 80u);
  for (int position = 80; position < 120; ++position) {
    ASSERT_LT(DecodeBy(graph, position), kErrorMax);
  }
  cudaGraphExecDestroy(graph);
}

TEST_F(CudaMappedStreamTest, ATokenThatIsNotFiniteRaisesTheFlag) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  ASSERT_TRUE(stream_->Refresh(session.get()).ok());
  const cudaGraphExec_t graph = CaptureDecode(session.get());
  ASSERT_LT(DecodeBy(graph, 0), kErrorMax);
  for (const bool prompt : {false, true}) {
    MappedTokens bad(1, 1, 1);
    const float infinity = std::numeric_limits<float>::infinity();
    bad.v.replace(4 * 5, 4, reinterpret_cast<const char*>(&infinity), 4);
    tokens_[1].SetTokens(bad);
    tokens_[1].SetQuery(MappedQuery(1));
    const CudaMappedStream::Query query = tokens_[1].Of(session.get());
    if (prompt) {
      ASSERT_TRUE(stream_->Append(session.get(), 1, query.k, query.v, 1).ok());
    } else {
      ASSERT_TRUE(stream_->AppendAttend(1, 0, {query}).ok());
      Check(cudaStreamSynchronize(cuda_stream_));
      MappedQuery output(1);
      tokens_[1].Get(&output);
      EXPECT_TRUE(output.is_nan());
    }
    ASSERT_TRUE(stream_->Commit(session.get(), 0).ok());
    const absl::Status status = stream_->Wait(session.get(), Soon());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(status.message(), "v: value 5 of 1 tokens for layer 1, must be finite");
    ASSERT_TRUE(stream_->ClearError(session.get()).ok());
  }
  ASSERT_LT(DecodeBy(graph, 1), kErrorMax);
  ASSERT_TRUE(CommitAndWait(session.get()).ok());
  EXPECT_EQ(session->committed_token_count(), 2u);
  cudaGraphExecDestroy(graph);
}

TEST_F(CudaMappedStreamTest, ABatchOfSessionsIsAppendedToAndAttendedInOneCall) {
  const auto lease = OpenLease();
  constexpr int kSessions = 50;
  std::vector<std::unique_ptr<MappedSession>> sessions;
  const std::unique_ptr<DeviceToken[]> tokens = std::make_unique<DeviceToken[]>(kSessions);
  std::vector<CudaMappedStream::Query> queries;
  for (int i = 0; i < kSessions; ++i) {
    const v1::Session created = daemon_->CreateSession(absl::StrCat("chat", i));
    sessions.push_back(Open(lease, created.id(), MapAccess::kWrite, 64));
    Append(sessions.back().get(), 0, 1 + i);
    tokens[static_cast<size_t>(i)].SetTokens(MappedTokens(0, 1 + i, 1));
    tokens[static_cast<size_t>(i)].SetQuery(MappedQuery(i));
    queries.push_back(tokens[static_cast<size_t>(i)].Of(sessions.back().get()));
  }
  const absl::Status status = stream_->AppendAttend(0, 0, queries);
  ASSERT_TRUE(status.ok()) << status;
  Check(cudaStreamSynchronize(cuda_stream_));
  for (int i = 0; i < kSessions; ++i) {
    MappedQuery query(i);
    tokens[static_cast<size_t>(i)].Get(&query);
    EXPECT_LT(query.ErrorOver(0, 2 + i), kErrorMax) << i;
  }
  queries.push_back(queries[7]);
  const absl::Status twice = stream_->AppendAttend(0, 0, queries);
  EXPECT_EQ(twice.code(), absl::StatusCode::kInvalidArgument) << twice;
}

TEST_F(CudaMappedStreamTest, WrongCallsHaveTheirCodeAndChangeNothing) {
  const v1::Session created = daemon_->CreateSession("chat");
  const auto lease = OpenLease();
  const auto session = Open(lease, created.id(), MapAccess::kWrite);
  tokens_[0].SetTokens(MappedTokens(0, 0, 1));
  tokens_[0].SetQuery(MappedQuery(0));
  CudaMappedStream::Query query = tokens_[0].Of(session.get());
  const auto code = [&](size_t layer) { return stream_->AppendAttend(layer, 0, {query}).code(); };
  EXPECT_EQ(code(kLayers), absl::StatusCode::kInvalidArgument);
  query.k += 4;
  EXPECT_EQ(code(0), absl::StatusCode::kInvalidArgument);
  query.k -= 4;
  query.query_tokens = 0;
  EXPECT_EQ(code(0), absl::StatusCode::kInvalidArgument);
  query.query_tokens = 1;
  // The calls of host memory.
  EXPECT_EQ(session->Append(0, MappedTokens(0, 0, 1).tokens()).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(session->Commit(Soon()).code(), absl::StatusCode::kFailedPrecondition);
  MappedStream host(1);
  MappedQuery host_query(1);
  EXPECT_EQ(host.Attend(0, 0, {host_query.Of(session.get())}).code(),
            absl::StatusCode::kFailedPrecondition);
  // A reader, another stream, a capture of a session that the stream has not seen.
  const auto reader = Open(OpenLease(), created.id(), MapAccess::kRead);
  EXPECT_EQ(stream_->Commit(reader.get(), 0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(code(0), absl::StatusCode::kOk);
  cudaStream_t other = nullptr;
  Check(cudaStreamCreate(&other));
  {
    const auto second = NewStream(other);
    EXPECT_EQ(second->AppendAttend(0, 0, {query}).code(), absl::StatusCode::kFailedPrecondition);
  }
  cudaStreamDestroy(other);
  const cudaGraphExec_t graph = Capture([&] {
    query.session = reader.get();
    EXPECT_EQ(stream_->Attend(0, 0, {query}).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(stream_->Refresh(session.get()).code(), absl::StatusCode::kFailedPrecondition);
  });
  cudaGraphExecDestroy(graph);
  ASSERT_TRUE(CommitAndWait(session.get()).ok()) << "layer 1 has no token, so none is committed";
  EXPECT_EQ(session->committed_token_count(), 0u);
}

}  // namespace
}  // namespace kvdepot
