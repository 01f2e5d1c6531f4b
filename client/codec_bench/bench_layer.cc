#include "client/codec_bench/bench_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

namespace kvdepot {
namespace {

constexpr char kTenant[] = "bench";
constexpr uint64_t kQueriesSeed = 1;
// Of fp32 values that are attended over once.
constexpr int kValueExtentTokens = 1024;

std::vector<int> DrawQueries(int available, int wanted) {
  std::vector<int> queries(available);
  std::iota(queries.begin(), queries.end(), 0);
  std::mt19937_64 random(kQueriesSeed);
  // std::shuffle may differ between libraries.
  for (size_t i = queries.size(); i > 1; --i) std::swap(queries[i - 1], queries[random() % i]);
  queries.resize(std::min(available, wanted));
  std::sort(queries.begin(), queries.end());
  return queries;
}

const std::byte* BytesOf(const std::string& text) {
  return reinterpret_cast<const std::byte*>(text.data());
}
const std::byte* BytesOf(absl::Span<const float> values) {
  return reinterpret_cast<const std::byte*>(values.data());
}

void AppendRuns(const Extents& extents, int tokens, int extent_tokens,
                std::vector<TokenRun>* runs) {
  int left = tokens;
  for (const auto& extent : extents) {
    const int count = std::min(left, extent_tokens);
    runs->push_back({TokenRun::Form::kExact, extent->data(), extent_tokens, 0, count});
    left -= count;
  }
}

}  // namespace

BenchLayer::BenchLayer(Backend* backend, const DumpLayer& layer, int query_count)
    : backend_(backend),
      layer_(layer),
      layout_(LayoutOfPrompt(layer.kv.token_count)),
      queries_(DrawQueries(layer.query_count, query_count)),
      scale_(1 / std::sqrt(static_cast<float>(layer.shape.head_dim))) {
  for (const int query : queries_) {
    const absl::string_view bytes = layer.QueryBytes(query);
    const std::byte* data = reinterpret_cast<const std::byte*>(bytes.data());
    q_.insert(q_.end(), data, data + bytes.size());
    const std::vector<float> values = FloatsOf(layer.dtype, bytes);
    q_fp32_.insert(q_fp32_.end(), BytesOf(values), BytesOf(values) + 4 * values.size());
  }
}

absl::StatusOr<std::unique_ptr<BenchLayer>> BenchLayer::Create(Backend* backend,
                                                               const DumpLayer& layer,
                                                               int query_count) {
  auto result = std::unique_ptr<BenchLayer>(new BenchLayer(backend, layer, query_count));
  const PromptLayout& layout = result->layout_;
  const size_t row_bytes = layer.shape.row_values() * DTypeBytes(layer.dtype);
  const auto store = [&](int first, int tokens, int extent_tokens, Extents* extents) {
    const size_t offset = static_cast<size_t>(first) * row_bytes;
    absl::StatusOr<Extents> stored = result->Store(
        layer.dtype, BytesOf(layer.k) + offset, BytesOf(layer.v) + offset, tokens, extent_tokens);
    if (!stored.ok()) return stored.status();
    *extents = *std::move(stored);
    return absl::OkStatus();
  };
  const int tail = layout.tokens - layout.sealed_end();
  absl::Status status = store(0, kSinkTokens, kSinkTokens, &result->sinks_);
  if (status.ok()) {
    status = store(kSinkTokens, layout.sealed_tokens(), kBlockTokens, &result->blocks_);
  }
  if (status.ok()) status = store(layout.sealed_end(), tail, kBlockTokens, &result->tail_);
  if (!status.ok()) return status;
  for (const auto& block : result->blocks_) result->block_data_.push_back(block->data());
  return result;
}

absl::StatusOr<Extents> BenchLayer::Store(DType dtype, const std::byte* k, const std::byte* v,
                                          int tokens, int extent_tokens) const {
  const DenseTokens dense = {k, v, tokens, MemorySpace::kHost};
  Extents extents;
  for (int first = 0; first < tokens; first += extent_tokens) {
    absl::StatusOr<std::unique_ptr<Extent>> extent = backend_->Allocate(
        kTenant, ExtentUse::kTail, ExactExtentBytes(layer_.shape, dtype, extent_tokens));
    if (!extent.ok()) return extent.status();
    backend_->WriteTokens(layer_.shape, dtype, dense, first,
                          std::min(extent_tokens, tokens - first), (*extent)->data(), extent_tokens,
                          0);
    extents.push_back(*std::move(extent));
  }
  backend_->Synchronize();
  return extents;
}

SealBlocks BenchLayer::SourceOf(size_t index) const {
  constexpr size_t kSegmentBlocks = kSegmentTokensMax / kBlockTokens;
  const size_t count = static_cast<size_t>(layout_.segments[index]) / kBlockTokens;
  return {layer_.shape, layer_.dtype,
          absl::MakeConstSpan(block_data_).subspan(index * kSegmentBlocks, count)};
}

absl::StatusOr<std::vector<float>> BenchLayer::AttendRuns(DType dtype,
                                                          absl::Span<const TokenRun> runs,
                                                          const LayerCalibration* calibration,
                                                          const std::vector<std::byte>& q) const {
  AttendItem item;
  item.shape = layer_.shape;
  item.dtype = dtype;
  item.calibration = calibration;
  item.runs = runs;
  // Behind the last token: every query sees all.
  item.query_position = static_cast<uint64_t>(layout_.tokens);
  item.query_tokens = static_cast<int>(queries_.size());
  item.scale = scale_;
  item.q = q.data();
  const size_t rows = queries_.size() * static_cast<size_t>(layer_.shape.query_heads);
  std::vector<float> output(rows * static_cast<size_t>(layer_.shape.head_dim));
  std::vector<float> log_sum_exp(rows);
  item.output = output.data();
  item.log_sum_exp = log_sum_exp.data();
  const absl::Status status = backend_->Attend(absl::MakeConstSpan(&item, 1));
  if (!status.ok()) return status;
  return output;
}

absl::StatusOr<std::vector<float>> BenchLayer::Attend(absl::Span<const TokenRun> sealed,
                                                      const LayerCalibration* calibration) const {
  std::vector<TokenRun> runs;
  AppendRuns(sinks_, kSinkTokens, kSinkTokens, &runs);
  runs.insert(runs.end(), sealed.begin(), sealed.end());
  AppendRuns(tail_, layout_.tokens - layout_.sealed_end(), kBlockTokens, &runs);
  return AttendRuns(layer_.dtype, runs, calibration, q_);
}

absl::StatusOr<std::vector<float>> BenchLayer::AttendValues(absl::Span<const float> k,
                                                            absl::Span<const float> v) const {
  const KvArrays& exact = layer_.kv;
  const auto offset = static_cast<std::ptrdiff_t>(exact.At(kSinkTokens, 0));
  std::vector<float> all_k = exact.k;
  std::vector<float> all_v = exact.v;
  std::copy(k.begin(), k.end(), all_k.begin() + offset);
  std::copy(v.begin(), v.end(), all_v.begin() + offset);
  const absl::StatusOr<Extents> extents =
      Store(DType::kFp32, BytesOf(all_k), BytesOf(all_v), layout_.tokens, kValueExtentTokens);
  if (!extents.ok()) return extents.status();
  std::vector<TokenRun> runs;
  AppendRuns(*extents, layout_.tokens, kValueExtentTokens, &runs);
  return AttendRuns(DType::kFp32, runs, nullptr, q_fp32_);
}

}  // namespace kvdepot
