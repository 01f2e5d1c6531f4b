#include "server/chunk_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/request_check.h"
#include "server/session_spec.h"

namespace kvdepot {
absl::Status CheckChunk(const Session& session, const TokenChunk& chunk, uint64_t tokens_max) {
  absl::Status status = CheckLayer("chunk.layer", session, chunk.layer);
  if (!status.ok()) return status;
  const Layer& layer = session.layers()[static_cast<size_t>(chunk.layer)];
  if (chunk.token_count < 1 || chunk.token_count > tokens_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk.token_count: ", chunk.token_count, ", must be 1..", tokens_max));
  }
  const uint64_t row_values = layer.shape().row_values();
  const DType dtype = session.spec().dtype;
  status = CheckBytes("chunk.k", chunk.k.bytes.size(), chunk.token_count, row_values, dtype);
  if (status.ok())
    status = CheckBytes("chunk.v", chunk.v.bytes.size(), chunk.token_count, row_values, dtype);
  if (status.ok()) {
    status = ValidateQuerySecondMoments("query_second_moments.values", layer.shape(),
                                        chunk.query_second_moments);
  }
  if (!status.ok()) return status;
  if (chunk.position > layer.token_count()) {
    return absl::OutOfRangeError(absl::StrCat("chunk.position: ", chunk.position,
                                              ", expected at most ", layer.token_count(),
                                              ", the tokens of layer ", chunk.layer));
  }
  if (chunk.position + chunk.token_count > tokens_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tokens_per_session_max: ", layer.token_count(), " of ", tokens_max,
                     " tokens, the chunk ends at ", chunk.position + chunk.token_count));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChunkWriter> ChunkWriter::Prepare(EngineState* state, Session* session,
                                                 const TokenChunk& chunk) {
  const DType dtype = session->spec().dtype;
  const LayerShape& shape = session->spec().layers[static_cast<size_t>(chunk.layer)];
  absl::Status finite = CheckFinite(state->backend.get(), "chunk.k", chunk.k, dtype);
  if (finite.ok()) finite = CheckFinite(state->backend.get(), "chunk.v", chunk.v, dtype);
  if (!finite.ok()) return finite;
  ChunkWriter writer;
  writer.session_ = session;
  writer.chunk_ = chunk;
  std::vector<uint64_t> sizes_bytes;
  bool moments_count = false;
  {
    MutexLock lock(state->mu);
    const Layer& layer = session->layers()[static_cast<size_t>(chunk.layer)];
    moments_count = layer.MomentsCount(session->spec().codec);
    writer.skip_ = std::min(layer.token_count() - chunk.position, chunk.token_count);
    writer.count_ = chunk.token_count - writer.skip_;
    for (const int capacity : layer.ExtentsFor(writer.count_)) {
      sizes_bytes.push_back(ExactExtentBytes(shape, dtype, capacity));
    }
  }
  absl::StatusOr<std::vector<ExtentRef>> fresh =
      state->Allocate(session->tenant(), ExtentUse::kTail, sizes_bytes);
  if (!fresh.ok()) return fresh.status();
  writer.fresh_ = *std::move(fresh);
  if (moments_count && writer.count_ > 0) {
    absl::StatusOr<QueryMomentsRef> moments =
        state->Charge(session->tenant(), chunk.query_second_moments);
    if (!moments.ok()) return moments.status();
    writer.moments_ = *std::move(moments);
  }
  return writer;
}

uint64_t ChunkWriter::Store(EngineState* state) {
  if (count_ == 0) return 0;
  const size_t layer_index = static_cast<size_t>(chunk_.layer);
  const LayerShape& shape = session_->spec().layers[layer_index];
  std::vector<Placement> placements;
  {
    MutexLock lock(state->mu);
    placements = session_->layers()[layer_index].Place(count_, fresh_);
  }
  const DenseTokens tokens{chunk_.k.data(), chunk_.v.data(), static_cast<int>(chunk_.token_count),
                           chunk_.k.space()};
  for (const Placement& to : placements) {
    state->backend->WriteTokens(shape, session_->spec().dtype, tokens,
                                static_cast<int>(skip_) + to.from, to.count, to.extent, to.capacity,
                                to.first_slot);
  }
  // A client's buffer is its own again when the call is answered.
  if (tokens.space == MemorySpace::kDevice) state->backend->Synchronize();
  {
    MutexLock lock(state->mu);
    session_->layers()[layer_index].Append(count_, fresh_, std::move(moments_));
  }
  fresh_.clear();
  state->observer->OnAppended(count_);
  return count_;
}

}  // namespace kvdepot
