#include "server/services/token_convert.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "server/services/field_error.h"
#include "server/services/session_convert.h"

namespace kvdepot {
namespace {

absl::StatusOr<TokenChunk> ReadChunk(const v1::TokenChunk& from, const Options& options,
                                     const BufferFinder& find) {
  const absl::StatusOr<int> layer = ToLayer("layer", from.layer(), options.engine);
  if (!layer.ok()) return layer.status();
  if (from.has_k_range() != from.has_v_range()) {
    return FieldError("v_range", from.has_v_range() ? "set" : "not set", "as k_range is");
  }
  absl::StatusOr<CallInput> k =
      ToCallInput("k", from.k(), from.has_k_range() ? &from.k_range() : nullptr,
                  options.message_bytes_max, find);
  if (!k.ok()) return k.status();
  absl::StatusOr<CallInput> v =
      ToCallInput("v", from.v(), from.has_v_range() ? &from.v_range() : nullptr,
                  options.message_bytes_max, find);
  if (!v.ok()) return v.status();
  TokenChunk chunk;
  chunk.layer = *layer;
  chunk.position = from.position();
  chunk.token_count = from.token_count();
  chunk.k = *std::move(k);
  chunk.v = *std::move(v);
  return chunk;
}

absl::Status CheckScale(float scale) {
  if (std::isfinite(scale) && scale >= 0) return absl::OkStatus();
  return FieldError("scale", scale, "finite and at least 0");
}

// Of Attend or Decode: how many items there are, and that their reply fits a message.
template <typename Item>
absl::Status CheckItems(const google::protobuf::RepeatedPtrField<Item>& items,
                        const Options& options) {
  const int count_max = options.engine.batch_sessions_max;
  if (items.empty() || items.size() > count_max) {
    return FieldError("items", absl::StrCat(items.size(), " items"),
                      absl::StrCat("1..", count_max));
  }
  uint64_t query_bytes = 0;
  for (const Item& item : items) {
    if (item.has_output_range()) continue;
    query_bytes += item.queries().q().size() + item.queries().q_range().size_bytes();
  }
  const uint64_t query_bytes_max = options.message_bytes_max / 16 * 7;
  if (query_bytes <= query_bytes_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "message_bytes_max: ", query_bytes, " bytes of queries, their reply fits a message of ",
      options.message_bytes_max, " up to ", query_bytes_max));
}

// Queries of an item of Attend or Decode, and where its results go.
template <typename Item>
absl::Status ReadQueries(const Item& item, const Options& options, const BufferFinder& find,
                         QueryTokens* to) {
  const v1::QueryTokens& queries = item.queries();
  to->query_tokens = queries.token_count();
  absl::StatusOr<CallInput> q =
      ToCallInput("q", queries.q(), queries.has_q_range() ? &queries.q_range() : nullptr,
                  options.message_bytes_max, find);
  if (!q.ok()) return Inside("queries", q.status());
  to->q = *std::move(q);
  if (item.has_output_range() != item.has_log_sum_exp_range()) {
    return FieldError("log_sum_exp_range", item.has_log_sum_exp_range() ? "set" : "not set",
                      "as output_range is");
  }
  if (!item.has_output_range()) return absl::OkStatus();
  absl::StatusOr<CallOutput> output = ToCallOutput("output", &item.output_range(), find);
  if (!output.ok()) return output.status();
  absl::StatusOr<CallOutput> log_sum_exp =
      ToCallOutput("log_sum_exp", &item.log_sum_exp_range(), find);
  if (!log_sum_exp.ok()) return log_sum_exp.status();
  to->output = *std::move(output);
  to->log_sum_exp = *std::move(log_sum_exp);
  return absl::OkStatus();
}

absl::StatusOr<AttendQuery> ToAttendQuery(const v1::AttendItem& item, const Options& options,
                                          const BufferFinder& find) {
  absl::Status status = CheckSessionId(item.session_id());
  if (!status.ok()) return status;
  AttendQuery query;
  query.session_id = item.session_id();
  query.token_count = item.token_count();
  status = ReadQueries(item, options, find, &query);
  if (!status.ok()) return status;
  return query;
}

absl::StatusOr<DecodeStep> ToDecodeStep(const v1::DecodeItem& item, const Options& options,
                                        const BufferFinder& find) {
  absl::Status status = CheckSessionId(item.session_id());
  if (!status.ok()) return status;
  absl::StatusOr<TokenChunk> chunk = ReadChunk(item.chunk(), options, find);
  if (!chunk.ok()) return Inside("chunk", chunk.status());
  DecodeStep step;
  step.session_id = item.session_id();
  step.generation = item.generation();
  step.chunk = *std::move(chunk);
  status = ReadQueries(item, options, find, &step);
  if (!status.ok()) return status;
  return step;
}

std::string ItemField(int index) { return absl::StrCat("items[", index, "]"); }

}  // namespace

absl::StatusOr<TokenChunk> ToTokenChunk(const v1::AppendRequest& request, const Options& options,
                                        const BufferFinder& find) {
  if (!request.has_chunk()) return FieldError("chunk", "not set", "set");
  absl::StatusOr<TokenChunk> chunk = ReadChunk(request.chunk(), options, find);
  if (!chunk.ok()) return Inside("chunk", chunk.status());
  const auto& moments = request.query_second_moments().values();
  chunk->query_second_moments.assign(moments.begin(), moments.end());
  return chunk;
}

absl::StatusOr<int> ToLayer(absl::string_view field, uint32_t layer, const EngineOptions& limits) {
  if (layer < static_cast<uint32_t>(limits.layers_max)) return static_cast<int>(layer);
  return FieldError(field, layer, absl::StrCat("less than ", limits.layers_max));
}

absl::StatusOr<std::vector<AttendQuery>> ToAttendQueries(const v1::AttendRequest& request,
                                                         const Options& options,
                                                         const BufferFinder& find) {
  absl::Status status = CheckScale(request.scale());
  if (status.ok()) status = CheckItems(request.items(), options);
  if (!status.ok()) return status;
  std::vector<AttendQuery> queries;
  queries.reserve(static_cast<size_t>(request.items_size()));
  for (int i = 0; i < request.items_size(); ++i) {
    absl::StatusOr<AttendQuery> query = ToAttendQuery(request.items(i), options, find);
    if (!query.ok()) return Inside(ItemField(i), query.status());
    queries.push_back(*std::move(query));
  }
  return queries;
}

absl::StatusOr<std::vector<DecodeStep>> ToDecodeSteps(const v1::DecodeRequest& request,
                                                      const Options& options,
                                                      const BufferFinder& find) {
  absl::Status status = CheckScale(request.scale());
  if (status.ok()) status = CheckItems(request.items(), options);
  if (!status.ok()) return status;
  std::vector<DecodeStep> steps;
  steps.reserve(static_cast<size_t>(request.items_size()));
  for (int i = 0; i < request.items_size(); ++i) {
    absl::StatusOr<DecodeStep> step = ToDecodeStep(request.items(i), options, find);
    if (!step.ok()) return Inside(ItemField(i), step.status());
    steps.push_back(*std::move(step));
  }
  return steps;
}

void ToProto(AttendResult result, v1::AttendOutput* output) {
  output->set_output(std::move(result.output));
  output->set_log_sum_exp(std::move(result.log_sum_exp));
  output->set_token_count(result.token_count);
}

void ToProto(int layer, FetchedTokens tokens, v1::TokenChunk* chunk) {
  chunk->set_layer(static_cast<uint32_t>(layer));
  chunk->set_position(tokens.position);
  chunk->set_token_count(static_cast<uint32_t>(tokens.token_count));
  chunk->set_k(std::move(tokens.k));
  chunk->set_v(std::move(tokens.v));
}

}  // namespace kvdepot
