#include "server/attend_batch.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/finite_cpu.h"
#include "gpu/sliding_window.h"
#include "server/request_check.h"

namespace kvdepot {
namespace {

size_t QueryValues(const LayerShape& shape) {
  return static_cast<size_t>(shape.query_heads) * static_cast<size_t>(shape.head_dim);
}

// DATA_LOSS if a value in an exact extent is not finite. They were when they were stored; since
// then a process that maps the session for writing can have written anything there. Of what was
// sealed meanwhile nothing is asked: it may be long, and this is one piece of work.
absl::Status CheckTail(Backend* backend, const AttendSubject& subject) {
  const size_t head_dim = static_cast<size_t>(subject.shape.head_dim);
  const size_t row_bytes = head_dim * DTypeBytes(subject.dtype);
  uint64_t position = subject.view_position;
  std::vector<std::byte> values;
  for (const TokenRun& run : subject.view.runs) {
    const size_t count = static_cast<size_t>(run.count);
    values.resize(run.form == TokenRun::Form::kExact ? count * row_bytes : 0);
    // Head after head K and V.
    for (int tensor = 0; tensor < 2 * subject.shape.kv_heads && !values.empty(); ++tensor) {
      const size_t slot = static_cast<size_t>(tensor) * static_cast<size_t>(run.capacity) +
                          static_cast<size_t>(run.first);
      backend->ReadBytes(run.data + slot * row_bytes, values.size(), values.data());
      const size_t index = FirstNonFinite(values.data(), subject.dtype, count * head_dim);
      if (index == count * head_dim) continue;
      return absl::DataLossError(absl::StrCat(
          "tail: ", tensor % 2 == 0 ? "k" : "v", " of token ", position + index / head_dim,
          ", KV head ", tensor / 2,
          ", is not finite, its mapped writer has overwritten it: truncate the session there"));
    }
    position += count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckQueries(const Session& session, const LayerShape& shape,
                          const QueryTokens& queries, int query_tokens_max) {
  const uint64_t tokens = queries.query_tokens;
  if (tokens < 1 || tokens > static_cast<uint64_t>(query_tokens_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries.token_count: ", tokens, ", must be 1..", query_tokens_max));
  }
  const size_t values = QueryValues(shape);
  absl::Status status =
      CheckBytes("queries.q", queries.q.bytes.size(), tokens, values, session.spec().dtype);
  if (!status.ok() || queries.output.is_in_reply()) return status;
  status = CheckBytes("output_range.size_bytes", queries.output.size_bytes, tokens, values,
                      DType::kFp32);
  if (!status.ok()) return status;
  return CheckBytes("log_sum_exp_range.size_bytes", queries.log_sum_exp.size_bytes, tokens,
                    static_cast<uint64_t>(shape.query_heads), DType::kFp32);
}

absl::Status CheckVisible(const std::string& field, const Layer& layer, uint64_t query_position) {
  if (FirstVisible(layer.shape(), query_position) >= layer.first_held()) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat(field, ": a query at position ", query_position, " sees tokens from ",
                   FirstVisible(layer.shape(), query_position), " on, the layer holds them from ",
                   layer.first_held(), " on (sliding_window ", layer.shape().sliding_window, ")"));
}

AttendSubject ViewForQueries(const Session& session, size_t layer_index, float scale,
                             const QueryTokens& queries, uint64_t token_count) {
  const Layer& layer = session.layers()[layer_index];
  AttendSubject subject;
  subject.shape = layer.shape();
  subject.dtype = session.spec().dtype;
  subject.calibration = layer.calibration();
  subject.query_position = token_count - queries.query_tokens;
  subject.queries = queries;
  subject.view_position = FirstVisible(layer.shape(), subject.query_position);
  subject.view = layer.View(subject.view_position, token_count);
  subject.scale = scale;
  return subject;
}

void AttendBatch::Add(AttendSubject subject) { subjects_.push_back(std::move(subject)); }

uint64_t AttendBatch::row_tokens() const {
  uint64_t sum = 0;
  for (const AttendSubject& subject : subjects_) {
    const uint64_t tokens =
        subject.query_position + subject.queries.query_tokens - subject.view_position;
    sum += subject.queries.query_tokens * static_cast<uint64_t>(subject.shape.query_heads) * tokens;
  }
  return sum;
}

void AttendBatch::Prepare() {
  std::vector<QuerySpan> spans;
  for (const AttendSubject& subject : subjects_) {
    const int query_tokens = static_cast<int>(subject.queries.query_tokens);
    spans.push_back({subject.query_position, query_tokens, subject.shape.query_heads,
                     subject.shape.sliding_window});
    AttendResult result;
    result.token_count = subject.query_position + subject.queries.query_tokens;
    if (subject.queries.output.is_in_reply()) {
      const size_t rows =
          subject.queries.query_tokens * static_cast<size_t>(subject.shape.query_heads);
      result.log_sum_exp.resize(rows * sizeof(float));
      result.output.resize(rows * static_cast<size_t>(subject.shape.head_dim) * sizeof(float));
    }
    results_.push_back(std::move(result));
  }
  pieces_ = CutIntoPieces(spans, row_tokens_max_);
}

AttendBatch::Results AttendBatch::ResultsOf(const QuerySlice& slice) {
  const AttendSubject& subject = subjects_[slice.span];
  const QueryTokens& queries = subject.queries;
  const size_t rows =
      static_cast<size_t>(slice.first) * static_cast<size_t>(subject.shape.query_heads);
  const bool in_reply = queries.output.is_in_reply();
  AttendResult& reply = results_[slice.span];
  auto* const output = in_reply ? &reply.output[0] : reinterpret_cast<char*>(queries.output.data);
  auto* const log_sum_exp =
      in_reply ? &reply.log_sum_exp[0] : reinterpret_cast<char*>(queries.log_sum_exp.data);
  return {reinterpret_cast<float*>(output) + rows * static_cast<size_t>(subject.shape.head_dim),
          reinterpret_cast<float*>(log_sum_exp) + rows,
          in_reply ? MemorySpace::kHost : MemorySpace::kDevice};
}

AttendItem AttendBatch::ItemOf(const QuerySlice& slice) {
  const AttendSubject& subject = subjects_[slice.span];
  const Results results = ResultsOf(slice);
  const size_t first = static_cast<size_t>(slice.first);
  const size_t values = QueryValues(subject.shape);
  AttendItem item;
  item.shape = subject.shape;
  item.dtype = subject.dtype;
  item.calibration = subject.calibration.get();
  item.runs = subject.view.runs;
  item.first_position = subject.view_position;
  item.query_position = subject.query_position + first;
  item.query_tokens = slice.count;
  item.scale = subject.scale != 0
                   ? subject.scale
                   : static_cast<float>(1 / std::sqrt(static_cast<double>(subject.shape.head_dim)));
  item.q = subject.queries.q.data() + first * values * DTypeBytes(subject.dtype);
  item.q_space = subject.queries.q.space();
  item.output = results.output;
  item.log_sum_exp = results.log_sum_exp;
  item.results_space = results.space;
  return item;
}

// They are few, and those of a slice need not be aligned as device memory is to be.
size_t AttendBatch::FirstNonFiniteLogSumExp(Backend* backend, const Results& results,
                                            size_t count) {
  const auto* values = reinterpret_cast<const std::byte*>(results.log_sum_exp);
  std::vector<std::byte> read;
  if (results.space == MemorySpace::kDevice) {
    read.resize(count * sizeof(float));
    backend->ReadBytes(values, read.size(), read.data());
    values = read.data();
  }
  return FirstNonFinite(values, DType::kFp32, count);
}

// Finite queries and keys may have a product that fp32 does not hold. Every query sees a token, its
// own at least, so that only such a logit makes a log_sum_exp that is not finite; or a value that
// was finite when it was stored. (Outputs alone may also be beyond fp32, if V is close to that.)
absl::Status AttendBatch::CheckResults(Backend* backend, const QuerySlice& slice) {
  const AttendSubject& subject = subjects_[slice.span];
  const Results results = ResultsOf(slice);
  const size_t heads = static_cast<size_t>(subject.shape.query_heads);
  const size_t begin = static_cast<size_t>(slice.first) * heads;
  const size_t count = static_cast<size_t>(slice.count) * heads;
  const size_t index = FirstNonFiniteLogSumExp(backend, results, count);
  const size_t values = count * static_cast<size_t>(subject.shape.head_dim);
  if (index == count && backend->FirstNonFinite(reinterpret_cast<const std::byte*>(results.output),
                                                results.space, DType::kFp32, values) == values) {
    return absl::OkStatus();
  }
  absl::Status stored = CheckTail(backend, subject);
  if (!stored.ok()) return InItem(slice.span, stored);
  if (index == count) return absl::OkStatus();
  const size_t row = begin + index;
  return InItem(
      slice.span,
      absl::InvalidArgumentError(absl::StrCat(
          "queries.q: row ", row, " (query token ", row / heads, ", head ", row % heads,
          ") has a logit beyond fp32, scale * q.k must be finite for every visible token")));
}

absl::StatusOr<bool> AttendBatch::RunPiece(Backend* backend) {
  std::vector<AttendItem> items;
  for (const QuerySlice& slice : pieces_[next_piece_]) items.push_back(ItemOf(slice));
  absl::Status status = backend->Attend(items);
  for (const QuerySlice& slice : pieces_[next_piece_]) {
    if (status.ok()) status = CheckResults(backend, slice);
  }
  if (!status.ok()) return status;
  return ++next_piece_ < pieces_.size();
}

std::vector<AttendResult> AttendBatch::TakeResults() { return std::move(results_); }

}  // namespace kvdepot
