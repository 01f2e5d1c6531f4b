// Wrong input of every kind against a whole daemon: the exact code, a message that names field,
// value and limit, and sessions that are afterwards what they were before.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <openssl/sha.h>

#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

using grpc::StatusCode;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kTokens = 100;
constexpr char kAlice[] = "alice's secret";
constexpr char kBob[] = "bob's secret";
constexpr char kOperator[] = "the operator's secret";

std::string TokenLine(const std::string& tenant, const std::string& token,
                      const std::string& role = "client") {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest);
  return absl::StrCat(tenant, " ",
                      absl::BytesToHexString(
                          absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest))),
                      " ", role, "\n");
}

// `bytes` with one fp32 value replaced.
std::string With(std::string bytes, size_t index, float value) {
  return bytes.replace(index * sizeof(float), sizeof(float), Bytes({value}));
}

template <typename Detail>
bool HasDetail(const grpc::Status& status, Detail* detail) {
  google::rpc::Status rich;
  EXPECT_TRUE(rich.ParseFromString(status.error_details()));
  for (const auto& any : rich.details()) {
    if (any.UnpackTo(detail)) return true;
  }
  return false;
}

void ExpectStatus(const grpc::Status& status, StatusCode code,
                  const std::vector<std::string>& message_parts) {
  EXPECT_EQ(status.error_code(), code) << status.error_message();
  for (const std::string& part : message_parts) {
    EXPECT_TRUE(absl::StrContains(status.error_message(), part))
        << "'" << part << "' is not in: " << status.error_message();
  }
}

class BadInputTest : public testing::Test {
 protected:
  static constexpr uint64_t kMessageBytesMax = 1 << 20;

  BadInputTest()
      : daemon_([](Options& options, const std::string& folder) {
          options.tokens_file = folder + "/tokens";
          std::ofstream(options.tokens_file) << TokenLine("alice", kAlice) << TokenLine("bob", kBob)
                                             << TokenLine("ops", kOperator, "operator");
          options.message_bytes_max = kMessageBytesMax;
          options.engine.fetch_bytes_max = kMessageBytesMax / 2;
        }) {
    daemon_.CallAs(kAlice);
    session_ = daemon_.CreateSession("alice's");
    EXPECT_TRUE(daemon_.AppendTokens(session_, 0, kTokens).ok());
    before_ = State();
  }
  // Every test ends with this.
  ~BadInputTest() override {
    daemon_.CallAs(kAlice);
    EXPECT_EQ(State(), before_) << "the session has changed";
  }

  // Everything that a client can see of the session.
  std::string State() {
    std::string state = daemon_.GetSession(session_.id()).SerializeAsString();
    for (int layer = 0; layer < kLayers; ++layer) {
      v1::FetchRequest request;
      request.set_session_id(session_.id());
      request.set_layer(static_cast<uint32_t>(layer));
      v1::TokenChunk tokens;
      EXPECT_TRUE(daemon_.Fetch(request, &tokens).ok());
      state += tokens.SerializeAsString();
    }
    return state;
  }

  // A call that gRPC or the client has ended is known to the daemon a little later; until then the
  // session is busy.
  void WaitUntilFree() {
    grpc::Status status;
    do {
      status = daemon_.AppendTokens(session_, 0, 1);
    } while (status.error_code() == StatusCode::UNAVAILABLE);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  grpc::Status AppendWith(const std::function<void(v1::AppendRequest&)>& change) {
    v1::AppendRequest request = AppendOf(session_, Chunk(0, kTokens, 2));
    change(request);
    return daemon_.Append({request});
  }
  grpc::Status AttendWith(const std::function<void(v1::AttendRequest&)>& change) {
    v1::AttendRequest request = AttendOf(session_, 0, Queries(1, 2));
    change(request);
    return daemon_.Attend(request);
  }
  grpc::Status DecodeWith(const std::function<void(v1::DecodeRequest&)>& change) {
    v1::DecodeRequest request = DecodeOf(session_, 0, kTokens, 2);
    change(request);
    return daemon_.Decode({request});
  }
  grpc::Status FetchWith(const std::function<void(v1::FetchRequest&)>& change) {
    v1::FetchRequest request;
    request.set_session_id(session_.id());
    change(request);
    v1::TokenChunk tokens;
    return daemon_.Fetch(request, &tokens);
  }

  // Each RPC about a session, asked about the session `id`.
  std::vector<std::pair<std::string, std::function<grpc::Status()>>> CallsAbout(
      const std::string& id);

  TestDaemon daemon_;
  v1::Session session_;
  std::string before_;
};

TEST_F(BadInputTest, WrongByteLength) {
  const size_t right = 2 * kRowValues * sizeof(float);
  for (const size_t length : {size_t{0}, right / 2, right - 1, right + 1, 2 * right}) {
    const std::string bytes(length, '\0');
    const std::string value = absl::StrCat(length, " bytes"), limit = absl::StrCat(right);
    ExpectStatus(AppendWith([&](auto& r) { r.mutable_chunk()->set_k(bytes); }),
                 StatusCode::INVALID_ARGUMENT, {"chunk.k: ", value, limit});
    ExpectStatus(AppendWith([&](auto& r) { r.mutable_chunk()->set_v(bytes); }),
                 StatusCode::INVALID_ARGUMENT, {"chunk.v: ", value, limit});
    ExpectStatus(DecodeWith([&](auto& r) { r.mutable_items(0)->mutable_chunk()->set_k(bytes); }),
                 StatusCode::INVALID_ARGUMENT, {"items[0].chunk.k: ", value, limit});
  }
  // The wrong number of heads or the wrong dtype is a wrong length, too.
  const std::string half(kQueryValues * sizeof(float), '\0');
  const std::string limit = absl::StrCat(2 * half.size());
  ExpectStatus(AttendWith([&](auto& r) { r.mutable_items(0)->mutable_queries()->set_q(half); }),
               StatusCode::INVALID_ARGUMENT, {"items[0].queries.q: ", "1024 bytes", limit});
  ExpectStatus(DecodeWith([&](auto& r) { r.mutable_items(0)->mutable_queries()->set_q(half); }),
               StatusCode::INVALID_ARGUMENT, {"items[0].queries.q: ", "1024 bytes", limit});
}

TEST_F(BadInputTest, WrongShapeOrDtype) {
  const auto create = [&](const std::function<void(v1::CreateSessionRequest&)>& change) {
    v1::CreateSessionRequest request;
    request.set_name("new");
    request.set_dtype(v1::DTYPE_FP32);
    v1::LayerShape* layer = request.add_layers();
    layer->set_kv_heads(2);
    layer->set_query_heads(4);
    layer->set_head_dim(64);
    change(request);
    v1::CreateSessionResponse response;
    Context context(kAlice);
    return daemon_.stub().CreateSession(context.get(), request, &response);
  };
  ExpectStatus(create([](auto& r) { r.clear_dtype(); }), StatusCode::INVALID_ARGUMENT,
               {"dtype: 0", "BF16, FP16 or FP32"});
  ExpectStatus(create([](auto& r) { r.set_dtype(static_cast<v1::Dtype>(7)); }),
               StatusCode::INVALID_ARGUMENT, {"dtype: 7", "BF16, FP16 or FP32"});
  // Numbers beyond every range are told the range, not what an integer holds.
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_query_heads(~0u); }),
               StatusCode::INVALID_ARGUMENT,
               {"layers[0].query_heads: 4294967295, must be 1..16 times kv_heads, which is 2"});
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_kv_heads(~0u); }),
               StatusCode::INVALID_ARGUMENT, {"layers[0].kv_heads: 4294967295, must be 1..1024"});
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_head_dim(~0u); }),
               StatusCode::INVALID_ARGUMENT,
               {"layers[0].head_dim: 4294967295, must be 64, 128 or 256"});
  ExpectStatus(create([](auto& r) { r.set_name("a\nb"); }), StatusCode::INVALID_ARGUMENT,
               {"name: byte 0x0a at position 1"});
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_query_heads(5); }),
               StatusCode::INVALID_ARGUMENT, {"layers[0].query_heads: 5", "2"});
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_kv_heads(0); }),
               StatusCode::INVALID_ARGUMENT, {"layers[0].kv_heads: 0", "1..1024"});
  ExpectStatus(create([](auto& r) { r.mutable_layers(0)->set_head_dim(100); }),
               StatusCode::INVALID_ARGUMENT, {"layers[0].head_dim: 100", "64, 128 or 256"});
  const grpc::Status unknown = create([](auto& r) { r.set_calibration(std::string(64, 'a')); });
  ExpectStatus(unknown, StatusCode::NOT_FOUND, {"calibration: ", std::string(64, 'a')});
  ExpectStatus(FetchWith([](auto& r) { r.set_dtype(static_cast<v1::Dtype>(7)); }),
               StatusCode::INVALID_ARGUMENT, {"dtype: 7", "BF16, FP16 or FP32"});
}

TEST_F(BadInputTest, AnInvalidArgumentNamesItsFieldInTheDetails) {
  google::rpc::BadRequest bad;
  ASSERT_TRUE(HasDetail(AppendWith([](auto& r) { r.mutable_chunk()->set_k("x"); }), &bad));
  EXPECT_EQ(bad.field_violations(0).field(), "chunk.k");
}

TEST_F(BadInputTest, GapInPositions) {
  ExpectStatus(AppendWith([](auto& r) { r.mutable_chunk()->set_position(kTokens + 1); }),
               StatusCode::OUT_OF_RANGE, {"chunk.position: 101", "100"});
  ExpectStatus(AppendWith([](auto& r) { r.mutable_chunk()->set_position(~uint64_t{0}); }),
               StatusCode::OUT_OF_RANGE, {"chunk.position: 18446744073709551615", "100"});
  ExpectStatus(DecodeWith([](auto& r) { r.mutable_items(0)->mutable_chunk()->set_position(200); }),
               StatusCode::OUT_OF_RANGE, {"items[0].chunk.position: 200", "100"});
}

TEST_F(BadInputTest, RepeatedAppendIsStoredOnce) {
  EXPECT_TRUE(daemon_.AppendTokens(session_, 0, kTokens).ok());
  EXPECT_TRUE(daemon_.AppendTokens(session_, kTokens - 1, 1).ok());
}

TEST_F(BadInputTest, OfAnOverlapOnlyTheNewSuffixIsStored) {
  ASSERT_TRUE(daemon_.AppendTokens(session_, kTokens - 10, 13).ok());
  v1::TokenChunk tokens;
  v1::FetchRequest request;
  request.set_session_id(session_.id());
  ASSERT_TRUE(daemon_.Fetch(request, &tokens).ok());
  EXPECT_EQ(tokens.token_count(), static_cast<uint32_t>(kTokens + 3));
  EXPECT_EQ(tokens.k(), Chunk(0, 0, kTokens + 3).k());
  before_ = State();
}

TEST_F(BadInputTest, ValuesThatAreNotFinite) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    const std::string kv = With(Chunk(0, kTokens, 2).k(), 200, bad);
    const std::string q = With(Queries(1, 2).q(), 300, bad);
    ExpectStatus(AppendWith([&](auto& r) { r.mutable_chunk()->set_k(kv); }),
                 StatusCode::INVALID_ARGUMENT, {"chunk.k", "200", "finite"});
    ExpectStatus(AppendWith([&](auto& r) { r.mutable_chunk()->set_v(kv); }),
                 StatusCode::INVALID_ARGUMENT, {"chunk.v", "200", "finite"});
    ExpectStatus(AttendWith([&](auto& r) { r.mutable_items(0)->mutable_queries()->set_q(q); }),
                 StatusCode::INVALID_ARGUMENT, {"items[0].queries.q", "300", "finite"});
    ExpectStatus(DecodeWith([&](auto& r) { r.mutable_items(0)->mutable_chunk()->set_k(kv); }),
                 StatusCode::INVALID_ARGUMENT, {"items[0].chunk.k", "200", "finite"});
    ExpectStatus(DecodeWith([&](auto& r) { r.mutable_items(0)->mutable_queries()->set_q(q); }),
                 StatusCode::INVALID_ARGUMENT, {"items[0].queries.q", "300", "finite"});
    ExpectStatus(AttendWith([&](auto& r) { r.set_scale(bad); }), StatusCode::INVALID_ARGUMENT,
                 {"scale: ", "finite"});
  }
}

// Finite values whose product fp32 does not hold.
TEST_F(BadInputTest, LogitsBeyondFp32) {
  const v1::Session session = daemon_.CreateSession("huge");
  const std::string huge = Bytes(std::vector<float>(kQueryValues, 1e30f));
  v1::DecodeRequest decode = DecodeOf(session, 0, 0, 1);
  decode.mutable_items(0)->mutable_chunk()->set_k(Bytes(std::vector<float>(kRowValues, 1e30f)));
  decode.mutable_items(0)->mutable_queries()->set_q(huge);
  const std::string message =
      "items[0].queries.q: row 0 (query token 0, head 0) has a logit beyond fp32, scale * q.k must "
      "be finite for every visible token";
  grpc::Status status = daemon_.Decode({decode});
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), message + "; the tokens are stored");
  EXPECT_EQ(daemon_.GetSession(session.id()).layer_states(0).token_count(), 1u);
  ASSERT_TRUE(daemon_.Append({AppendOf(session, Chunk(1, 0, 1))}).ok());
  v1::QueryTokens queries;
  queries.set_token_count(1);
  queries.set_q(huge);
  status = daemon_.Attend(AttendOf(session, 0, queries));
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), message);
}

// The same wherever the tokens are, and by the scale alone.
TEST_F(BadInputTest, LogitsBeyondFp32AmongOthers) {
  for (const v1::Codec codec : {v1::CODEC_RAW, v1::CODEC_PLANES}) {
    SCOPED_TRACE(v1::Codec_Name(codec));
    for (const int position : {-1, 0, 70, 399}) {
      const v1::Session session = daemon_.CreateSession(absl::StrCat(codec, "/", position), codec);
      v1::TokenChunk chunk = Chunk(0, 0, 400);
      const std::string huge = Bytes(std::vector<float>(kRowValues, 1e30f));
      if (position >= 0) chunk.mutable_k()->replace(position * huge.size(), huge.size(), huge);
      ASSERT_TRUE(daemon_
                      .Append({AppendOf(session, chunk),
                               [] {
                                 v1::AppendRequest other;
                                 *other.mutable_chunk() = Chunk(1, 0, 400);
                                 return other;
                               }()})
                      .ok());
      ASSERT_GT(daemon_.GetSession(session.id()).layer_states(0).sealed_end(), 70u);
      v1::AttendRequest request = AttendOf(session, 0, Queries(1, 1));
      EXPECT_TRUE(daemon_.Attend(request).ok()) << position;
      request.mutable_items(0)->mutable_queries()->set_q(
          Bytes(std::vector<float>(kQueryValues, 1e30f)));
      if (position < 0) request.set_scale(1e30f);
      ExpectStatus(daemon_.Attend(request), StatusCode::INVALID_ARGUMENT,
                   {"items[0].queries.q: row 0 (query token 0, head 0) has a logit beyond fp32"});
    }
  }
}

TEST_F(BadInputTest, NoTokens) {
  ExpectStatus(AppendWith([](auto& r) { *r.mutable_chunk() = Chunk(0, kTokens, 0); }),
               StatusCode::INVALID_ARGUMENT, {"chunk.token_count: 0", "1.."});
  ExpectStatus(AttendWith([](auto& r) { *r.mutable_items(0)->mutable_queries() = Queries(1, 0); }),
               StatusCode::INVALID_ARGUMENT, {"items[0].queries.token_count: 0", "1..1024"});
  ExpectStatus(AttendWith([](auto& r) { r.clear_items(); }), StatusCode::INVALID_ARGUMENT,
               {"items: 0 items", "1..256"});
  ExpectStatus(daemon_.Append({}), StatusCode::INVALID_ARGUMENT, {"chunk: no message"});
}

TEST_F(BadInputTest, LayersAndRangesThatDoNotExist) {
  ExpectStatus(AppendWith([](auto& r) { r.mutable_chunk()->set_layer(2); }),
               StatusCode::INVALID_ARGUMENT, {"chunk.layer: 2", "0..1"});
  ExpectStatus(AppendWith([](auto& r) { r.mutable_chunk()->set_layer(~0u); }),
               StatusCode::INVALID_ARGUMENT, {"chunk.layer: 4294967295", "256"});
  ExpectStatus(AttendWith([](auto& r) { r.set_layer(2); }), StatusCode::INVALID_ARGUMENT,
               {"layer: 2", "0..1"});
  ExpectStatus(FetchWith([](auto& r) { r.set_layer(2); }), StatusCode::INVALID_ARGUMENT,
               {"layer: 2", "2"});
  ExpectStatus(AttendWith([](auto& r) { r.mutable_items(0)->set_token_count(kTokens + 1); }),
               StatusCode::OUT_OF_RANGE, {"items[0].token_count: 101", "100"});
  ExpectStatus(FetchWith([](auto& r) { r.set_position(kTokens + 1); }), StatusCode::OUT_OF_RANGE,
               {"position: 101", "100"});
  ExpectStatus(FetchWith([](auto& r) { r.set_token_count(kTokens + 1); }), StatusCode::OUT_OF_RANGE,
               {"token_count: 101", "100"});
}

TEST_F(BadInputTest, StaleGeneration) {
  ExpectStatus(AppendWith([](auto& r) { r.set_generation(7); }), StatusCode::ABORTED,
               {"generation: 7", "1"});
  ExpectStatus(DecodeWith([](auto& r) { r.mutable_items(0)->set_generation(0); }),
               StatusCode::ABORTED, {"items[0].generation: 0", "1"});
}

std::vector<std::pair<std::string, std::function<grpc::Status()>>> BadInputTest::CallsAbout(
    const std::string& id) {
  // Context and stub of one call with the token that daemon_ now uses.
  const auto unary = [this](auto method, auto request, auto response) {
    return [=]() mutable {
      Context context(daemon_.token());
      return (daemon_.stub().*method)(context.get(), request, &response);
    };
  };
  v1::GetSessionRequest get;
  get.set_session_id(id);
  v1::DeleteSessionRequest remove;
  remove.set_session_id(id);
  v1::TruncateSessionRequest truncate;
  truncate.set_session_id(id);
  truncate.set_generation(1);
  v1::SealSessionRequest seal;
  seal.set_session_id(id);
  seal.set_generation(1);
  v1::TouchSessionRequest touch;
  touch.set_session_id(id);
  using Stub = v1::KvDepotService::Stub;
  return {
      {"GetSession", unary(&Stub::GetSession, get, v1::GetSessionResponse())},
      {"DeleteSession", unary(&Stub::DeleteSession, remove, v1::DeleteSessionResponse())},
      {"TruncateSession", unary(&Stub::TruncateSession, truncate, v1::TruncateSessionResponse())},
      {"SealSession", unary(&Stub::SealSession, seal, v1::SealSessionResponse())},
      {"TouchSession", unary(&Stub::TouchSession, touch, v1::TouchSessionResponse())},
      {"Append", [=] { return AppendWith([&](auto& r) { r.set_session_id(id); }); }},
      {"Attend",
       [=] { return AttendWith([&](auto& r) { r.mutable_items(0)->set_session_id(id); }); }},
      {"Decode",
       [=] { return DecodeWith([&](auto& r) { r.mutable_items(0)->set_session_id(id); }); }},
      {"Fetch", [=] { return FetchWith([&](auto& r) { r.set_session_id(id); }); }},
  };
}

TEST_F(BadInputTest, UnknownSession) {
  for (const auto& [name, call] : CallsAbout("0123456789abcdef")) {
    SCOPED_TRACE(name);
    ExpectStatus(call(), StatusCode::NOT_FOUND, {"session_id: ", "0123456789abcdef"});
  }
  for (const auto& [name, call] : CallsAbout("")) {
    SCOPED_TRACE(name);
    ExpectStatus(call(), StatusCode::INVALID_ARGUMENT, {"session_id: "});
  }
}

TEST_F(BadInputTest, AnotherTenantsSessionDoesNotExist) {
  daemon_.CallAs(kBob);
  for (const auto& [name, call] : CallsAbout(session_.id())) {
    SCOPED_TRACE(name);
    ExpectStatus(call(), StatusCode::NOT_FOUND, {"session_id: ", session_.id()});
  }
  v1::ListSessionsResponse listed;
  Context context(kBob);
  ASSERT_TRUE(daemon_.stub().ListSessions(context.get(), {}, &listed).ok());
  EXPECT_EQ(listed.sessions_size(), 0);
}

TEST_F(BadInputTest, BadToken) {
  for (const char* token : {"", "guess", "alice"}) {
    daemon_.CallAs(token);
    for (const auto& [name, call] : CallsAbout(session_.id())) {
      SCOPED_TRACE(name);
      ExpectStatus(call(), StatusCode::UNAUTHENTICATED, {"authorization: "});
    }
  }
}

// gRPC itself refuses these, with the value and the limit in its own words.
TEST_F(BadInputTest, OversizedMessage) {
  const std::string large(kMessageBytesMax + 1, 'x');
  size_t size = 0;
  const auto expect_refused = [&size](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(status.error_message(), absl::StrCat("Received message larger than max (", size,
                                                   " vs. ", kMessageBytesMax, ")"));
  };
  expect_refused(AttendWith([&](auto& r) {
    r.mutable_items(0)->mutable_queries()->set_q(large);
    size = r.ByteSizeLong();
  }));
  expect_refused(AppendWith([&](auto& r) {
    r.mutable_chunk()->set_k(large);
    size = r.ByteSizeLong();
  }));
  expect_refused(DecodeWith([&](auto& r) {
    r.mutable_items(0)->mutable_chunk()->set_k(large);
    size = r.ByteSizeLong();
  }));
}

// The end of a stream and a message that cannot be received look alike to a careless server.
TEST_F(BadInputTest, OversizedMessageLaterInAStream) {
  v1::AppendRequest large_append;
  large_append.mutable_chunk()->set_k(std::string(kMessageBytesMax + 1, 'x'));
  ExpectStatus(daemon_.Append({AppendOf(session_, Chunk(0, 0, 1)), large_append}),
               StatusCode::RESOURCE_EXHAUSTED, {"larger than max"});
  WaitUntilFree();
  v1::DecodeRequest large_decode = DecodeOf(session_, 0, kTokens, 1);
  large_decode.mutable_items(0)->mutable_queries()->set_q(std::string(kMessageBytesMax + 1, 'x'));
  v1::DecodeRequest stored = DecodeOf(session_, 0, kTokens - 1, 1);
  std::vector<v1::DecodeResponse> responses;
  ExpectStatus(daemon_.Decode({stored, large_decode}, &responses), StatusCode::RESOURCE_EXHAUSTED,
               {"larger than max"});
  EXPECT_EQ(responses.size(), 1u);
}

TEST_F(BadInputTest, BytesThatAreNoMessage) {
  grpc::GenericStub stub(daemon_.channel());
  const auto* service = v1::GetServerInfoRequest::descriptor()->file()->service(0);
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string& method = service->method(i)->name();
    Context context(method == "SetBudget" ? kOperator : kAlice);
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(context.get(),
                                       absl::StrCat("/kvdepot.v1.KvDepotService/", method), &queue);
    call->StartCall(nullptr);
    const grpc::Slice garbage("\xFF\xFF\xFF no message");
    const grpc::ByteBuffer bytes(&garbage, 1);
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    call->WriteLast(bytes, grpc::WriteOptions(), nullptr);
    ASSERT_TRUE(queue.Next(&tag, &ok));
    grpc::Status status;
    call->Finish(&status, nullptr);
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_EQ(status.error_message(),
              absl::StrCat("message: 14 bytes, must be a kvdepot.v1.", method, "Request"));
    queue.Shutdown();
  }
}

TEST_F(BadInputTest, AnExpiredDeadlineChangesNothing) {
  v1::AppendResponse response;
  grpc::ClientContext context;
  context.AddMetadata("authorization", absl::StrCat("Bearer ", kAlice));
  context.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
  const auto writer = daemon_.stub().Append(&context, &response);
  writer->Write(AppendOf(session_, Chunk(0, kTokens, 2)));
  writer->WritesDone();
  EXPECT_EQ(writer->Finish().error_code(), StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(BadInputTest, ACancelledAppendGivesTheSessionBack) {
  {
    v1::AppendResponse response;
    Context context(kAlice);
    const auto writer = daemon_.stub().Append(context.get(), &response);
    // A chunk that is there already: the call begins its addition and stores nothing.
    ASSERT_TRUE(writer->Write(AppendOf(session_, Chunk(0, 0, 1))));
    context.get()->TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), StatusCode::CANCELLED);
  }
  WaitUntilFree();
}

TEST_F(BadInputTest, ASecondMutationIsToldToTryAgain) {
  v1::AppendResponse response;
  Context context(kAlice);
  const auto writer = daemon_.stub().Append(context.get(), &response);
  ASSERT_TRUE(writer->Write(AppendOf(session_, Chunk(0, kTokens, 1))));
  while (daemon_.GetSession(session_.id()).layer_states(0).token_count() == kTokens) {
  }
  const grpc::Status status = daemon_.AppendTokens(session_, 0, 1);
  ExpectStatus(status, StatusCode::UNAVAILABLE, {"session_id: ", session_.id()});
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(HasDetail(status, &retry));
  writer->WritesDone();
  EXPECT_TRUE(writer->Finish().ok());
  before_ = State();
}

TEST_F(BadInputTest, TheSessionIsNamedOnceInAStream) {
  ExpectStatus(
      daemon_.Append({AppendOf(session_, Chunk(0, 0, 1)), AppendOf(session_, Chunk(0, 1, 1))}),
      StatusCode::INVALID_ARGUMENT, {"session_id: "});
}

TEST_F(BadInputTest, ADecodeErrorEndsTheStreamAfterTheAnswersBefore) {
  v1::DecodeRequest bad = DecodeOf(session_, 0, kTokens + 1, 1);
  bad.mutable_items(0)->mutable_queries()->set_q(With(Queries(1, 1).q(), 0, kNan));
  std::vector<v1::DecodeResponse> responses;
  const grpc::Status status = daemon_.Decode({DecodeOf(session_, 0, kTokens, 1), bad}, &responses);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  ASSERT_EQ(responses.size(), 1u);
  EXPECT_EQ(daemon_.GetSession(session_.id()).layer_states(0).token_count(),
            static_cast<uint64_t>(kTokens + 1));
  before_ = State();
}

TEST(Budget, AChunkThatDoesNotFitIsRefusedWhole) {
  TestDaemon daemon(
      [](Options& options, const std::string&) { options.memory_budget.bytes = 16 << 20; });
  const v1::Session session = daemon.CreateSession("chat");
  grpc::Status status;
  int stored = 0;
  while ((status = daemon.Append({AppendOf(session, Chunk(0, stored, 100))})).ok()) stored += 100;
  ExpectStatus(status, StatusCode::RESOURCE_EXHAUSTED,
               {"budget_bytes: ", " of 16777216", "needed"});
  google::rpc::QuotaFailure quota;
  ASSERT_TRUE(HasDetail(status, &quota));
  EXPECT_EQ(quota.violations(0).subject(), "budget_bytes");
  EXPECT_GT(stored, 0);
  EXPECT_EQ(daemon.GetSession(session.id()).layer_states(0).token_count(),
            static_cast<uint64_t>(stored));
  v1::FetchRequest request;
  request.set_session_id(session.id());
  v1::TokenChunk tokens;
  ASSERT_TRUE(daemon.Fetch(request, &tokens).ok());
  EXPECT_EQ(tokens.k(), Chunk(0, 0, stored).k());
}

}  // namespace
}  // namespace kvdepot
