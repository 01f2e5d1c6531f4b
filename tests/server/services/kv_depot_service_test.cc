// Each RPC once as it is meant to be used, over a Unix socket, with the real engine on the CPU.
#include "server/services/kv_depot_service.h"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kvdepot/v1/calibration.pb.h"
#include "tests/server/services/test_daemon.h"

namespace kvdepot {
namespace {

// Attention of query token i over tokens [0, visible) of what Chunk() makes, in double.
void ExpectAttention(const v1::AttendOutput& output, const v1::QueryTokens& queries, int layer,
                     int query, int visible) {
  const v1::TokenChunk tokens = Chunk(layer, 0, visible);
  const std::vector<float> k = Floats(tokens.k()), v = Floats(tokens.v()), q = Floats(queries.q());
  const std::vector<float> got = Floats(output.output()), lse = Floats(output.log_sum_exp());
  for (int head = 0; head < kQueryHeads; ++head) {
    const int kv_head = head / (kQueryHeads / kKvHeads);
    const auto q_at = [&](int c) { return q[(query * kQueryHeads + head) * kHeadDim + c]; };
    double sum = 0;
    std::vector<double> out(kHeadDim);
    for (int t = 0; t < visible; ++t) {
      double score = 0;
      for (int c = 0; c < kHeadDim; ++c)
        score += q_at(c) * k[t * kRowValues + kv_head * kHeadDim + c];
      const double weight = std::exp(score / std::sqrt(kHeadDim));
      sum += weight;
      for (int c = 0; c < kHeadDim; ++c)
        out[c] += weight * v[t * kRowValues + kv_head * kHeadDim + c];
    }
    ASSERT_NEAR(lse[query * kQueryHeads + head], std::log(sum), 1e-4);
    for (int c = 0; c < kHeadDim; ++c) {
      ASSERT_NEAR(got[(query * kQueryHeads + head) * kHeadDim + c], out[c] / sum, 1e-4);
    }
  }
}

class ServiceTest : public testing::Test {
 protected:
  v1::KvDepotService::Stub& stub() { return daemon_.stub(); }

  TestDaemon daemon_;
};

TEST_F(ServiceTest, TellsWhatItIs) {
  v1::GetServerInfoResponse info;
  Context context;
  ASSERT_TRUE(stub().GetServerInfo(context.get(), {}, &info).ok());
  EXPECT_EQ(info.version(), "0.1.0");
  EXPECT_EQ(info.format_version(), 1u);
  const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
  EXPECT_EQ(info.backend(), device == nullptr || device == std::string("cpu") ? "cpu" : "cuda");
  EXPECT_EQ(info.tenant(), "default");
  EXPECT_EQ(info.budget_bytes(), 64u << 20);
  EXPECT_NE(info.epoch(), 0u);
  EXPECT_EQ(info.codecs_size(), 3);
  EXPECT_EQ(info.dtypes_size(), 3);
  const auto* fields = v1::Limits::descriptor();
  for (int i = 0; i < fields->field_count(); ++i) {
    EXPECT_TRUE(info.limits().GetReflection()->HasField(info.limits(), fields->field(i)))
        << fields->field(i)->name();
  }
}

TEST_F(ServiceTest, CreatesASessionOnce) {
  const v1::Session session = daemon_.CreateSession("chat");
  EXPECT_EQ(session.name(), "chat");
  EXPECT_EQ(session.layers_size(), kLayers);
  EXPECT_EQ(session.layer_states_size(), kLayers);
  EXPECT_EQ(session.profile(), v1::PROFILE_EXACT);
  EXPECT_EQ(daemon_.CreateSession("chat").id(), session.id());

  v1::GetSessionRequest by_name;
  by_name.set_name("chat");
  v1::GetSessionResponse found;
  Context context;
  ASSERT_TRUE(stub().GetSession(context.get(), by_name, &found).ok());
  EXPECT_EQ(found.session().id(), session.id());
}

TEST_F(ServiceTest, RefusesTheNameOfASessionThatDiffers) {
  daemon_.CreateSession("chat");
  v1::CreateSessionRequest request;
  request.set_name("chat");
  request.set_dtype(v1::DTYPE_FP32);
  request.set_codec(v1::CODEC_RAW);
  v1::LayerShape* layer = request.add_layers();
  layer->set_kv_heads(1);
  layer->set_query_heads(1);
  layer->set_head_dim(64);
  v1::CreateSessionResponse response;
  Context context;
  const grpc::Status status = stub().CreateSession(context.get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "layers")) << status.error_message();
}

TEST_F(ServiceTest, ListsSessionsInPages) {
  for (const char* name : {"c", "a", "e", "b", "d"}) daemon_.CreateSession(name);
  v1::ListSessionsRequest request;
  request.set_page_size(2);
  std::string names;
  int pages = 0;
  do {
    v1::ListSessionsResponse response;
    Context context;
    ASSERT_TRUE(stub().ListSessions(context.get(), request, &response).ok());
    for (const v1::Session& session : response.sessions()) names += session.name();
    request.set_page_token(response.next_page_token());
    ++pages;
  } while (!request.page_token().empty());
  EXPECT_EQ(names, "abcde");
  EXPECT_EQ(pages, 3);
}

// Decompressed it would be far larger than a message may be.
TEST_F(ServiceTest, RefusesCompressedMessages) {
  Context context;
  context.get()->set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::PutCalibrationRequest request;
  request.set_file(std::string(1 << 20, '\0'));
  v1::PutCalibrationResponse response;
  EXPECT_EQ(stub().PutCalibration(context.get(), request, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

// The largest page that is allowed, asked for or left out, is not taken for the last one.
TEST(ServiceOptions, PagesOfTheLargestSizeFollowEachOther) {
  TestDaemon daemon([](Options& options, const std::string&) { options.engine.page_size_max = 2; });
  for (const char* name : {"c", "a", "e", "b", "d"}) daemon.CreateSession(name);
  for (const uint32_t page_size : {0u, 2u}) {
    v1::ListSessionsRequest request;
    request.set_page_size(page_size);
    std::string names;
    do {
      v1::ListSessionsResponse response;
      Context context;
      ASSERT_TRUE(daemon.stub().ListSessions(context.get(), request, &response).ok());
      for (const v1::Session& session : response.sessions()) names += session.name();
      request.set_page_token(response.next_page_token());
    } while (!request.page_token().empty());
    EXPECT_EQ(names, "abcde") << page_size;
  }
}

TEST_F(ServiceTest, AppendsAndFetches) {
  const v1::Session session = daemon_.CreateSession("chat");
  v1::AppendResponse appended;
  v1::AppendRequest second;
  *second.mutable_chunk() = Chunk(0, 3, 200);
  ASSERT_TRUE(daemon_.Append({AppendOf(session, Chunk(0, 0, 3)), second}, &appended).ok());
  ASSERT_EQ(appended.layers_size(), 1);
  EXPECT_EQ(appended.layers(0).layer(), 0u);
  EXPECT_EQ(appended.layers(0).state().token_count(), 203u);
  EXPECT_EQ(daemon_.GetSession(session.id()).committed_token_count(), 0u);

  v1::FetchRequest request;
  request.set_session_id(session.id());
  request.set_position(1);
  v1::TokenChunk tokens;
  ASSERT_TRUE(daemon_.Fetch(request, &tokens).ok());
  const v1::TokenChunk expected = Chunk(0, 1, 202);
  EXPECT_EQ(tokens.token_count(), 202u);
  EXPECT_EQ(tokens.k(), expected.k());
  EXPECT_EQ(tokens.v(), expected.v());
}

TEST_F(ServiceTest, FetchesNothingFromAnEmptyLayer) {
  v1::FetchRequest request;
  request.set_session_id(daemon_.CreateSession("chat").id());
  v1::TokenChunk tokens;
  EXPECT_TRUE(daemon_.Fetch(request, &tokens).ok());
  EXPECT_EQ(tokens.token_count(), 0u);
}

TEST_F(ServiceTest, Attends) {
  const v1::Session session = daemon_.CreateSession("chat");
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, 100).ok());
  const v1::QueryTokens queries = Queries(7, 2);
  v1::AttendResponse response;
  ASSERT_TRUE(daemon_.Attend(AttendOf(session, 1, queries), &response).ok());
  ASSERT_EQ(response.items_size(), 1);
  EXPECT_EQ(response.items(0).token_count(), 100u);
  ExpectAttention(response.items(0), queries, 1, 0, 99);
  ExpectAttention(response.items(0), queries, 1, 1, 100);
}

TEST_F(ServiceTest, AttendsOverManySessionsAtOnce) {
  v1::AttendRequest request;
  for (const char* name : {"a", "b", "c"}) {
    const v1::Session session = daemon_.CreateSession(name);
    ASSERT_TRUE(daemon_.AppendTokens(session, 0, 10 + 10 * request.items_size()).ok());
    *request.add_items() = AttendOf(session, 0, Queries(request.items_size(), 1)).items(0);
  }
  v1::AttendResponse response;
  ASSERT_TRUE(daemon_.Attend(request, &response).ok());
  ASSERT_EQ(response.items_size(), 3);
  for (int i = 0; i < 3; ++i) {
    ExpectAttention(response.items(i), request.items(i).queries(), 0, 0, 10 + 10 * i);
  }
}

TEST_F(ServiceTest, Decodes) {
  const v1::Session session = daemon_.CreateSession("chat");
  std::vector<v1::DecodeRequest> requests;
  for (int position = 0; position < 20; ++position) {
    for (int layer = 0; layer < kLayers; ++layer) {
      requests.push_back(DecodeOf(session, layer, position, 1));
    }
  }
  std::vector<v1::DecodeResponse> responses;
  ASSERT_TRUE(daemon_.Decode(requests, &responses).ok());
  ASSERT_EQ(responses.size(), requests.size());
  for (size_t i = 0; i < responses.size(); ++i) {
    const int position = static_cast<int>(i) / kLayers;
    ASSERT_EQ(responses[i].items_size(), 1);
    EXPECT_EQ(responses[i].items(0).token_count(), static_cast<uint64_t>(position + 1));
    ExpectAttention(responses[i].items(0), requests[i].items(0).queries(),
                    static_cast<int>(i) % kLayers, 0, position + 1);
  }
  EXPECT_EQ(daemon_.GetSession(session.id()).committed_token_count(), 20u);
}

TEST_F(ServiceTest, DecodeAnswersMessagesThatWereSentAhead) {
  const v1::Session session = daemon_.CreateSession("chat");
  Context context;
  const auto stream = stub().Decode(context.get());
  for (int position = 0; position < 50; ++position) {
    ASSERT_TRUE(stream->Write(DecodeOf(session, 0, position, 1)));
  }
  stream->WritesDone();
  v1::DecodeResponse response;
  for (uint64_t count = 1; stream->Read(&response); ++count) {
    EXPECT_EQ(response.items(0).token_count(), count);
  }
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(daemon_.GetSession(session.id()).layer_states(0).token_count(), 50u);
}

TEST_F(ServiceTest, TruncatesAndBumpsTheGeneration) {
  const v1::Session session = daemon_.CreateSession("chat");
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, 30).ok());
  v1::TruncateSessionRequest request;
  request.set_session_id(session.id());
  request.set_generation(session.generation());
  request.set_token_count(12);
  v1::TruncateSessionResponse response;
  Context context;
  ASSERT_TRUE(stub().TruncateSession(context.get(), request, &response).ok());
  EXPECT_EQ(response.session().committed_token_count(), 12u);
  EXPECT_EQ(response.session().generation(), session.generation() + 1);
  EXPECT_EQ(daemon_.AppendTokens(session, 12, 1).error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(daemon_.AppendTokens(response.session(), 12, 1).ok());
}

TEST_F(ServiceTest, SealsOnRequest) {
  const v1::Session session = daemon_.CreateSession("chat");
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, 250).ok());
  v1::SealSessionRequest request;
  request.set_session_id(session.id());
  request.set_generation(session.generation());
  v1::SealSessionResponse response;
  Context context;
  ASSERT_TRUE(stub().SealSession(context.get(), request, &response).ok());
  // 16 sinks, two whole blocks, and a window of at least 64.
  EXPECT_EQ(response.session().layer_states(0).sealed_end(), 144u);
}

TEST_F(ServiceTest, PlanesSessionsAttendCloseToTheTruth) {
  const v1::Session session = daemon_.CreateSession("chat", v1::CODEC_PLANES);
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, 400).ok());
  const v1::Session state = daemon_.GetSession(session.id());
  EXPECT_EQ(state.layer_states(0).sealed_end(), 16u + 64 * 5);
  EXPECT_LT(state.stored_bytes(), state.logical_bytes() / 2);
  v1::AttendResponse response;
  ASSERT_TRUE(daemon_.Attend(AttendOf(session, 0, Queries(1, 1)), &response).ok());
  for (const float value : Floats(response.items(0).output())) ASSERT_TRUE(std::isfinite(value));
}

// Out and in again by way of the wire: what was sealed stays what it was, in the order of tokens.
TEST_F(ServiceTest, PackKvSessionsLiveTheWholeLife) {
  v1::CreateSessionRequest request;
  request.set_name("packkv");
  v1::LayerShape* const layer = request.add_layers();
  layer->set_kv_heads(kKvHeads);
  layer->set_query_heads(kQueryHeads);
  layer->set_head_dim(kHeadDim);
  request.set_dtype(v1::DTYPE_FP32);
  request.set_codec(v1::CODEC_PACKKV);
  request.mutable_packkv()->set_pack_tokens(8);
  request.mutable_packkv()->set_repacking(v1::PACK_KV_REPACKING_GREEDY);
  v1::CreateSessionResponse created;
  {
    Context context;
    const grpc::Status status = stub().CreateSession(context.get(), request, &created);
    v1::GetServerInfoResponse info;
    Context other;
    ASSERT_TRUE(stub().GetServerInfo(other.get(), {}, &info).ok());
    if (info.backend() != "cpu") {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
      EXPECT_TRUE(absl::StrContains(status.error_message(), "packkv")) << status.error_message();
      return;
    }
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  const v1::Session session = created.session();
  EXPECT_EQ(session.packkv().pack_tokens(), 8u);
  EXPECT_EQ(session.packkv().repacking(), v1::PACK_KV_REPACKING_GREEDY);
  EXPECT_EQ(session.packkv().k_relative_scale(), .1f);

  v1::AppendRequest append;
  append.set_session_id(session.id());
  append.set_generation(session.generation());
  *append.mutable_chunk() = Chunk(0, 0, 400);
  ASSERT_TRUE(daemon_.Append({append}).ok());
  const v1::Session sealed = daemon_.GetSession(session.id());
  EXPECT_EQ(sealed.layer_states(0).sealed_end(), 16u + 64 * 5);
  EXPECT_LT(sealed.stored_bytes(), sealed.logical_bytes() / 2);

  const auto fetch = [&](uint64_t position, uint64_t count) {
    v1::FetchRequest range;
    range.set_session_id(session.id());
    range.set_position(position);
    range.set_token_count(count);
    v1::TokenChunk tokens;
    EXPECT_TRUE(daemon_.Fetch(range, &tokens).ok());
    EXPECT_EQ(tokens.token_count(), count);
    return tokens;
  };
  constexpr size_t kRowBytes = kRowValues * sizeof(float);
  const v1::TokenChunk first = fetch(0, 400);
  const v1::TokenChunk part = fetch(70, 201);
  EXPECT_EQ(part.k(), first.k().substr(70 * kRowBytes, 201 * kRowBytes));
  EXPECT_EQ(part.v(), first.v().substr(70 * kRowBytes, 201 * kRowBytes));

  v1::AttendResponse attended;
  ASSERT_TRUE(daemon_.Attend(AttendOf(session, 0, Queries(1, 1)), &attended).ok());
  for (const float value : Floats(attended.items(0).output())) ASSERT_TRUE(std::isfinite(value));

  v1::TruncateSessionRequest truncate;
  truncate.set_session_id(session.id());
  truncate.set_generation(session.generation());
  truncate.set_token_count(150);
  v1::TruncateSessionResponse truncated;
  Context context;
  ASSERT_TRUE(stub().TruncateSession(context.get(), truncate, &truncated).ok());
  const v1::TokenChunk kept = fetch(0, 150);
  EXPECT_EQ(kept.k(), first.k().substr(0, 150 * kRowBytes));
  EXPECT_EQ(kept.v(), first.v().substr(0, 150 * kRowBytes));
}

TEST_F(ServiceTest, SetsTheBudget) {
  const v1::Session session = daemon_.CreateSession("chat");
  ASSERT_TRUE(daemon_.AppendTokens(session, 0, 100).ok());
  const auto set = [this](const std::string& budget, v1::SetBudgetResponse* response) {
    v1::SetBudgetRequest request;
    request.set_budget(budget);
    Context context(daemon_.token());
    return stub().SetBudget(context.get(), request, response);
  };
  v1::SetBudgetResponse response;
  ASSERT_TRUE(set("1KiB", &response).ok());
  EXPECT_EQ(response.budget_bytes(), 1024u);
  EXPECT_GT(response.used_bytes(), 1024u);
  const grpc::Status refused = daemon_.AppendTokens(session, 100, 100);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(absl::StrContains(refused.error_message(), "budget_bytes: "));
  ASSERT_TRUE(set("64MiB", &response).ok());
  EXPECT_TRUE(daemon_.AppendTokens(session, 100, 100).ok());
  ASSERT_TRUE(set("50%", &response).ok());
  EXPECT_GT(response.budget_bytes(), uint64_t{64} << 20);
  v1::GetServerInfoResponse info;
  Context context(daemon_.token());
  ASSERT_TRUE(stub().GetServerInfo(context.get(), {}, &info).ok());
  EXPECT_EQ(info.budget_bytes(), response.budget_bytes());
  const grpc::Status wrong = set("lots", &response);
  EXPECT_EQ(wrong.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StrContains(wrong.error_message(), "budget: lots, must be bytes"));
}

TEST_F(ServiceTest, TouchesAndDeletes) {
  const v1::Session session = daemon_.CreateSession("chat");
  v1::TouchSessionRequest touch;
  touch.set_session_id(session.id());
  v1::TouchSessionResponse touched;
  Context touch_context;
  ASSERT_TRUE(stub().TouchSession(touch_context.get(), touch, &touched).ok());
  EXPECT_EQ(touched.session().id(), session.id());

  v1::DeleteSessionRequest request;
  request.set_session_id(session.id());
  v1::DeleteSessionResponse response;
  Context context, again;
  ASSERT_TRUE(stub().DeleteSession(context.get(), request, &response).ok());
  EXPECT_EQ(stub().DeleteSession(again.get(), request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, StoresAndListsCalibrations) {
  v1::Calibration file;
  file.set_model("model");
  for (int layer = 0; layer < kLayers; ++layer) {
    v1::LayerCalibration* heads = file.add_layers();
    for (int head = 0; head < kKvHeads; ++head) {
      v1::HeadCalibration* calibration = heads->add_heads();
      for (v1::TensorCalibration* tensor : {calibration->mutable_k(), calibration->mutable_v()}) {
        for (int c = 0; c < kHeadDim; ++c)
          tensor->mutable_channel_order()->push_back(static_cast<char>(c));
        tensor->set_patterns(std::string("\2\3\4\6", 4));
      }
    }
  }
  v1::PutCalibrationRequest put;
  put.set_file(file.SerializeAsString());
  v1::PutCalibrationResponse stored;
  Context put_context;
  ASSERT_TRUE(stub().PutCalibration(put_context.get(), put, &stored).ok());

  v1::ListCalibrationsResponse listed;
  Context list_context;
  ASSERT_TRUE(stub().ListCalibrations(list_context.get(), {}, &listed).ok());
  ASSERT_EQ(listed.calibrations_size(), 1);
  EXPECT_EQ(listed.calibrations(0).hash(), stored.hash());
  EXPECT_EQ(listed.calibrations(0).model(), "model");
  EXPECT_EQ(listed.calibrations(0).layer_count(), static_cast<uint32_t>(kLayers));
  EXPECT_FALSE(listed.calibrations(0).shared());

  v1::CreateSessionRequest create;
  create.set_name("calibrated");
  create.set_dtype(v1::DTYPE_FP32);
  create.set_calibration(stored.hash());
  for (int i = 0; i < kLayers; ++i) {
    v1::LayerShape* layer = create.add_layers();
    layer->set_kv_heads(kKvHeads);
    layer->set_query_heads(kQueryHeads);
    layer->set_head_dim(kHeadDim);
  }
  v1::CreateSessionResponse created;
  Context create_context;
  const grpc::Status status = stub().CreateSession(create_context.get(), create, &created);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(created.session().calibration(), stored.hash());
}

TEST(ServiceOptions, FetchComesInPieces) {
  TestDaemon daemon([](Options& options, const std::string&) {
    options.engine.fetch_bytes_max = 8 * 2 * kRowValues * sizeof(float);
  });
  const v1::Session session = daemon.CreateSession("chat");
  ASSERT_TRUE(daemon.AppendTokens(session, 0, 100).ok());
  v1::FetchRequest request;
  request.set_session_id(session.id());
  v1::TokenChunk tokens;
  int chunk_count = 0;
  ASSERT_TRUE(daemon.Fetch(request, &tokens, &chunk_count).ok());
  EXPECT_EQ(chunk_count, 13);
  EXPECT_EQ(tokens.k(), Chunk(0, 0, 100).k());
}

}  // namespace
}  // namespace kvdepot
