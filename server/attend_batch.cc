#include "server/attend_batch.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/finite_cpu.h"
#include "server/request_check.h"

namespace kvdepot {
namespace {

// First position that a query at `position` sees.
uint64_t FirstVisible(const LayerShape& shape, uint64_t position) {
  const uint64_t window = static_cast<uint64_t>(shape.sliding_window);
  return window > 0 && position >= window ? position - window + 1 : 0;
}

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

absl::Status CheckQueries(const Session& session, const LayerShape& shape, uint64_t query_tokens,
                          absl::string_view q, int query_tokens_max) {
  if (query_tokens < 1 || query_tokens > static_cast<uint64_t>(query_tokens_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries.token_count: ", query_tokens, ", must be 1..", query_tokens_max));
  }
  return CheckBytes("queries.q", q, query_tokens, QueryValues(shape), session.spec().dtype);
}

absl::Status CheckVisible(const std::string& field, const Layer& layer, uint64_t query_position) {
  if (FirstVisible(layer.shape(), query_position) >= layer.first_held()) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat(field, ": a query at position ", query_position, " sees tokens from ",
                   FirstVisible(layer.shape(), query_position), " on, the layer holds them from ",
                   layer.first_held(), " on (sliding_window ", layer.shape().sliding_window, ")"));
}

AttendSubject ViewForQueries(const Session& session, size_t layer_index, float scale,
                             uint64_t query_tokens, absl::string_view q, uint64_t token_count) {
  const Layer& layer = session.layers()[layer_index];
  AttendSubject subject;
  subject.shape = layer.shape();
  subject.dtype = session.spec().dtype;
  subject.calibration = layer.calibration();
  subject.query_position = token_count - query_tokens;
  subject.query_tokens = query_tokens;
  subject.view_position = FirstVisible(layer.shape(), subject.query_position);
  subject.view = layer.View(subject.view_position, token_count);
  subject.q = q;
  subject.scale = scale;
  return subject;
}

void AttendBatch::Add(AttendSubject subject) { subjects_.push_back(std::move(subject)); }

uint64_t AttendBatch::row_tokens() const {
  uint64_t sum = 0;
  for (const AttendSubject& subject : subjects_) {
    const uint64_t tokens = subject.query_position + subject.query_tokens - subject.view_position;
    sum += subject.query_tokens * static_cast<uint64_t>(subject.shape.query_heads) * tokens;
  }
  return sum;
}

void AttendBatch::Prepare() {
  std::vector<QuerySpan> spans;
  for (const AttendSubject& subject : subjects_) {
    const int query_tokens = static_cast<int>(subject.query_tokens);
    spans.push_back({subject.query_position, query_tokens, subject.shape.query_heads,
                     subject.shape.sliding_window});
    AttendResult result;
    result.token_count = subject.query_position + subject.query_tokens;
    result.output.resize(subject.query_tokens * QueryValues(subject.shape) * sizeof(float));
    result.log_sum_exp.resize(subject.query_tokens *
                              static_cast<size_t>(subject.shape.query_heads) * sizeof(float));
    results_.push_back(std::move(result));
  }
  pieces_ = CutIntoPieces(spans, row_tokens_max_);
}

AttendItem AttendBatch::ItemOf(const QuerySlice& slice) {
  const AttendSubject& subject = subjects_[slice.span];
  AttendResult& result = results_[slice.span];
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
  item.q = reinterpret_cast<const std::byte*>(subject.q.data()) +
           first * values * DTypeBytes(subject.dtype);
  item.output = reinterpret_cast<float*>(&result.output[0]) + first * values;
  item.log_sum_exp = reinterpret_cast<float*>(&result.log_sum_exp[0]) +
                     first * static_cast<size_t>(subject.shape.query_heads);
  return item;
}

// Finite queries and keys may have a product that fp32 does not hold. Every query sees a token, its
// own at least, so that only such a logit makes a log_sum_exp that is not finite; or a value that
// was finite when it was stored. (Outputs alone may also be beyond fp32, if V is close to that.)
absl::Status AttendBatch::CheckResults(Backend* backend, const QuerySlice& slice) const {
  const AttendSubject& subject = subjects_[slice.span];
  const size_t heads = static_cast<size_t>(subject.shape.query_heads);
  const size_t begin = static_cast<size_t>(slice.first) * heads;
  const size_t count = static_cast<size_t>(slice.count) * heads;
  const auto first_non_finite = [&](const std::string& floats, size_t width) {
    return FirstNonFinite(
        reinterpret_cast<const std::byte*>(&floats[begin * width * sizeof(float)]), DType::kFp32,
        count * width);
  };
  const size_t head_dim = static_cast<size_t>(subject.shape.head_dim);
  const size_t index = first_non_finite(results_[slice.span].log_sum_exp, 1);
  if (index == count &&
      first_non_finite(results_[slice.span].output, head_dim) == count * head_dim) {
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
