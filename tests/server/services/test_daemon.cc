#include "tests/server/services/test_daemon.h"

#include <grpcpp/create_channel.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace kvdepot {

std::vector<float> Values(int seed, int count) {
  std::minstd_rand random(static_cast<unsigned>(seed) + 1);
  random.discard(8);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000 - 1;
  return values;
}

std::string Bytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

v1::TokenChunk Chunk(int layer, int position, int count) {
  v1::TokenChunk chunk;
  chunk.set_layer(static_cast<uint32_t>(layer));
  chunk.set_position(static_cast<uint64_t>(position));
  chunk.set_token_count(static_cast<uint32_t>(count));
  for (int token = position; token < position + count; ++token) {
    const int seed = 2 * (1000 * layer + token);
    *chunk.mutable_k() += Bytes(Values(seed, kRowValues));
    *chunk.mutable_v() += Bytes(Values(seed + 1, kRowValues));
  }
  return chunk;
}

v1::QueryTokens Queries(int seed, int count) {
  v1::QueryTokens queries;
  queries.set_token_count(static_cast<uint32_t>(count));
  queries.set_q(Bytes(Values(1'000'000 + seed, count * kQueryValues)));
  return queries;
}

Context::Context(const std::string& token) {
  context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  if (!token.empty()) context_.AddMetadata("authorization", absl::StrCat("Bearer ", token));
}

TestDaemon::TestDaemon(const Change& change, const Server::Hooks& hooks) {
  Options options;
  options.listen = absl::StrCat("unix://", folder_.path(), "/socket");
  options.metrics_address = "";
  options.threads = 1;
  options.log_level = "error";
  // The same tests run on a GPU where this names one.
  const char* const device = std::getenv("KVDEPOT_TEST_DEVICE");
  options.device = device == nullptr ? "cpu" : device;
  options.memory_budget.bytes = 64 << 20;
  change(options, folder_.path());
  auto server = Server::Start(options, hooks);
  EXPECT_TRUE(server.ok()) << server.status();
  server_ = *std::move(server);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  channel_ = grpc::CreateCustomChannel(server_->addresses()[0], grpc::InsecureChannelCredentials(),
                                       arguments);
  stub_ = v1::KvDepotService::NewStub(channel_);
}

TestDaemon::~TestDaemon() {
  stub_.reset();
  channel_.reset();
  server_.reset();
}

v1::Session TestDaemon::CreateSession(const std::string& name, v1::Codec codec) {
  v1::CreateSessionRequest request;
  request.set_name(name);
  for (int i = 0; i < kLayers; ++i) {
    v1::LayerShape* layer = request.add_layers();
    layer->set_kv_heads(kKvHeads);
    layer->set_query_heads(kQueryHeads);
    layer->set_head_dim(kHeadDim);
  }
  request.set_dtype(v1::DTYPE_FP32);
  request.set_codec(codec);
  v1::CreateSessionResponse response;
  Context context(token_);
  const grpc::Status status = stub_->CreateSession(context.get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

v1::Session TestDaemon::GetSession(const std::string& id) {
  v1::GetSessionRequest request;
  request.set_session_id(id);
  v1::GetSessionResponse response;
  Context context(token_);
  const grpc::Status status = stub_->GetSession(context.get(), request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session();
}

grpc::Status TestDaemon::Append(const std::vector<v1::AppendRequest>& requests,
                                v1::AppendResponse* response) {
  v1::AppendResponse ignored;
  Context context(token_);
  const auto writer = stub_->Append(context.get(), response != nullptr ? response : &ignored);
  for (const v1::AppendRequest& request : requests) {
    if (!writer->Write(request)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

grpc::Status TestDaemon::AppendTokens(const v1::Session& session, int position, int count) {
  std::vector<v1::AppendRequest> requests;
  for (int layer = 0; layer < kLayers; ++layer) {
    requests.emplace_back();
    if (layer == 0) {
      requests[0].set_session_id(session.id());
      requests[0].set_generation(session.generation());
    }
    *requests.back().mutable_chunk() = Chunk(layer, position, count);
  }
  return Append(requests);
}

grpc::Status TestDaemon::Attend(const v1::AttendRequest& request, v1::AttendResponse* response) {
  v1::AttendResponse ignored;
  Context context(token_);
  return stub_->Attend(context.get(), request, response != nullptr ? response : &ignored);
}

grpc::Status TestDaemon::Decode(const std::vector<v1::DecodeRequest>& requests,
                                std::vector<v1::DecodeResponse>* responses) {
  Context context(token_);
  const auto stream = stub_->Decode(context.get());
  for (const v1::DecodeRequest& request : requests) {
    v1::DecodeResponse response;
    if (!stream->Write(request) || !stream->Read(&response)) break;
    if (responses != nullptr) responses->push_back(std::move(response));
  }
  stream->WritesDone();
  return stream->Finish();
}

grpc::Status TestDaemon::Fetch(const v1::FetchRequest& request, v1::TokenChunk* tokens,
                               int* chunk_count) {
  Context context(token_);
  const auto reader = stub_->Fetch(context.get(), request);
  v1::FetchResponse response;
  int chunks = 0;
  while (reader->Read(&response)) {
    const v1::TokenChunk& chunk = response.chunk();
    if (chunks++ == 0) tokens->set_position(chunk.position());
    EXPECT_EQ(chunk.position(), tokens->position() + tokens->token_count());
    tokens->set_layer(chunk.layer());
    tokens->set_token_count(tokens->token_count() + chunk.token_count());
    *tokens->mutable_k() += chunk.k();
    *tokens->mutable_v() += chunk.v();
  }
  if (chunk_count != nullptr) *chunk_count = chunks;
  return reader->Finish();
}

v1::AppendRequest AppendOf(const v1::Session& session, v1::TokenChunk chunk) {
  v1::AppendRequest request;
  request.set_session_id(session.id());
  request.set_generation(session.generation());
  *request.mutable_chunk() = std::move(chunk);
  return request;
}

v1::AttendRequest AttendOf(const v1::Session& session, int layer, v1::QueryTokens queries) {
  v1::AttendRequest request;
  request.set_layer(static_cast<uint32_t>(layer));
  v1::AttendItem* item = request.add_items();
  item->set_session_id(session.id());
  *item->mutable_queries() = std::move(queries);
  return request;
}

v1::DecodeRequest DecodeOf(const v1::Session& session, int layer, int position, int count) {
  v1::DecodeRequest request;
  request.set_layer(static_cast<uint32_t>(layer));
  v1::DecodeItem* item = request.add_items();
  item->set_session_id(session.id());
  item->set_generation(session.generation());
  *item->mutable_chunk() = Chunk(layer, position, count);
  *item->mutable_queries() = Queries(position, count);
  return request;
}

}  // namespace kvdepot
