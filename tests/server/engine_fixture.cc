#include "tests/server/engine_fixture.h"

#include <algorithm>
#include <cmath>

#include "gpu/check.h"

namespace kvdepot {

void CountingObserver::OnOperation(Operation, absl::StatusCode code, const OperationTimes& times) {
  KVDEPOT_CHECK(times.queue + times.work <= times.total);
  MutexLock lock(mu_);
  ++counts_.operations;
  if (code != absl::StatusCode::kOk) ++counts_.failed_operations;
}

void CountingObserver::OnAppended(uint64_t tokens) {
  MutexLock lock(mu_);
  counts_.appended += tokens;
}

void CountingObserver::OnSealed(const SealedSegment& segment) {
  KVDEPOT_CHECK(segment.logical_bytes > 0 && segment.stored_bytes > 0);
  MutexLock lock(mu_);
  int* const segments[] = {&counts_.raw_segments, &counts_.planes_segments,
                           &counts_.packkv_segments};
  ++*segments[CodecIndex(segment.codec)];
  counts_.sealed_tokens += static_cast<uint64_t>(segment.tokens);
  counts_.seal_lag_max = std::max(counts_.seal_lag_max, segment.lag);
}

void CountingObserver::OnReconstructionError(double k_error, double v_error) {
  MutexLock lock(mu_);
  counts_.errors.emplace_back(k_error, v_error);
}

void CountingObserver::OnSealDeferred() {
  MutexLock lock(mu_);
  ++counts_.deferred_seals;
}

void CountingObserver::OnMappingError(MappingOperation operation, absl::StatusCode code) {
  MutexLock lock(mu_);
  counts_.mapping_errors.emplace_back(operation, code);
}

TestEngine::TestEngine(const EngineOptions& options) : TestEngine(options, MakeCpuBackend(1)) {}

TestEngine::TestEngine(const EngineOptions& options, std::unique_ptr<Backend> backend)
    : calibrations_(options.calibrations_per_tenant_max),
      engine_(Engine::Make(options, std::move(backend), &calibrations_, &clock_, &observer_)) {
  caller_.tenant = "tenant";
}

absl::StatusOr<SessionInfo> TestEngine::Create(const SessionSpec& spec) {
  bool created = false;
  return engine_->CreateSession(caller_, spec, &created);
}

SessionInfo TestEngine::Get(const std::string& session_id) {
  absl::StatusOr<SessionInfo> info = engine_->GetSession(caller_, session_id, "");
  KVDEPOT_CHECK(info.ok());
  return *std::move(info);
}

absl::StatusOr<LayerState> TestEngine::Append(const SessionInfo& session, int layer,
                                              uint64_t position,
                                              const std::vector<ModelTokens>& chunks) {
  absl::StatusOr<std::unique_ptr<Engine::Addition>> addition =
      engine_->BeginAppend(caller_, session.id, session.generation);
  if (!addition.ok()) return addition.status();
  const LayerShape& shape = session.spec.layers[static_cast<size_t>(layer)];
  for (const ModelTokens& tokens : chunks) {
    const absl::StatusOr<LayerState> stored =
        AppendChunk(**addition, Chunk(layer, position, shape, tokens));
    if (!stored.ok()) return stored.status();
    position += tokens.k.size() / shape.row_values();
  }
  const auto states = Finish(**addition);
  if (!states.ok()) return states.status();
  return states->front().second;
}

absl::StatusOr<LayerState> TestEngine::AppendChunk(Engine::Addition& addition,
                                                   const TokenChunk& chunk) {
  Pending<LayerState> pending;
  addition.Append(chunk, pending.done());
  return pending.Wait();
}

absl::StatusOr<std::vector<std::pair<int, LayerState>>> TestEngine::Finish(
    Engine::Addition& addition) {
  Pending<std::vector<std::pair<int, LayerState>>> pending;
  addition.Finish(pending.done());
  return pending.Wait();
}

absl::StatusOr<std::vector<AttendResult>> TestEngine::Attend(int layer,
                                                             std::vector<AttendQuery> queries) {
  Pending<std::vector<AttendResult>> pending;
  engine_->Attend(caller_, layer, 0, std::move(queries), pending.done());
  return pending.Wait();
}

absl::StatusOr<std::vector<AttendResult>> TestEngine::Decode(int layer,
                                                             std::vector<DecodeStep> steps) {
  Pending<std::vector<AttendResult>> pending;
  engine_->Decode(caller_, layer, 0, std::move(steps), pending.done());
  return pending.Wait();
}

absl::StatusOr<FetchedTokens> TestEngine::Fetch(const std::string& session_id, int layer,
                                                uint64_t position, uint64_t token_count) {
  Pending<FetchedTokens> pending;
  engine_->Fetch(caller_, {session_id, layer, position, token_count, DType::kFp32}, pending.done());
  return pending.Wait();
}

absl::StatusOr<SessionInfo> TestEngine::Truncate(const SessionInfo& session, uint64_t token_count) {
  Pending<SessionInfo> pending;
  engine_->TruncateSession(caller_, session.id, session.generation, token_count, pending.done());
  return pending.Wait();
}

absl::StatusOr<SessionInfo> TestEngine::Seal(const SessionInfo& session) {
  Pending<SessionInfo> pending;
  engine_->SealSession(caller_, session.id, session.generation, pending.done());
  return pending.Wait();
}

ModelTokens TestEngine::FetchAll(const std::string& session_id, int layer, uint64_t position) {
  ModelTokens tokens;
  uint64_t remaining = 1;
  while (remaining > 0) {
    const absl::StatusOr<FetchedTokens> fetched = Fetch(session_id, layer, position, 0);
    KVDEPOT_CHECK(fetched.ok() && fetched->position == position && fetched->token_count > 0);
    const std::vector<float> k = FloatsOf(fetched->k);
    const std::vector<float> v = FloatsOf(fetched->v);
    tokens.k.insert(tokens.k.end(), k.begin(), k.end());
    tokens.v.insert(tokens.v.end(), v.begin(), v.end());
    position += fetched->token_count;
    remaining = fetched->remaining_tokens;
  }
  return tokens;
}

SessionSpec Spec(const std::string& name, Codec codec, const LayerShape& shape, int layers) {
  SessionSpec spec;
  spec.name = name;
  spec.model = "model";
  spec.dtype = DType::kFp32;
  spec.codec = codec;
  spec.layers.assign(static_cast<size_t>(layers), shape);
  return spec;
}

TokenChunk Chunk(int layer, uint64_t position, const LayerShape& shape, const ModelTokens& tokens) {
  TokenChunk chunk;
  chunk.layer = layer;
  chunk.position = position;
  chunk.token_count = tokens.k.size() / shape.row_values();
  chunk.k = BytesOf(tokens.k);
  chunk.v = BytesOf(tokens.v);
  return chunk;
}

DecodeStep Step(const SessionInfo& session, int layer, uint64_t position, const LayerShape& shape,
                const ModelTokens& tokens, const std::vector<float>& q) {
  DecodeStep step;
  step.session_id = session.id;
  step.generation = session.generation;
  step.chunk = Chunk(layer, position, shape, tokens);
  step.query_tokens = step.chunk.token_count;
  step.q = BytesOf(q);
  return step;
}

AttendQuery Query(const std::string& session_id, const LayerShape& shape,
                  const std::vector<float>& q, uint64_t token_count) {
  AttendQuery query;
  query.session_id = session_id;
  query.query_tokens = q.size() / static_cast<size_t>(shape.query_heads * shape.head_dim);
  query.q = BytesOf(q);
  query.token_count = token_count;
  return query;
}

std::vector<float> RandomQueries(std::mt19937& random, const LayerShape& shape,
                                 uint64_t query_tokens) {
  return RandomValues(random,
                      query_tokens * static_cast<size_t>(shape.query_heads * shape.head_dim));
}

double LargestError(const std::string& output, const std::vector<double>& expected) {
  const std::vector<float> values = FloatsOf(output);
  KVDEPOT_CHECK(values.size() == expected.size());
  double largest = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max(largest, std::abs(values[i] - expected[i]));
  }
  return largest;
}

}  // namespace kvdepot
