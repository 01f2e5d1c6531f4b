#include "gpu/attend_cpu.h"

#include <algorithm>
#include <cstring>

#include "gpu/check.h"
#include "gpu/numeric.h"
#include "gpu/packkv/attend_cpu.h"
#include "gpu/raw/attend_cpu.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// A part reads runs until it has this many tokens: fixed, because the split decides the order of
// sums.
constexpr int kPartTokens = 4096;
// Below this many products in a call a second thread costs more than it saves.
constexpr uint64_t kParallelProductsMin = 4u << 20;

// Client memory: need not be aligned.
float LoadValue(const std::byte* values, DType dtype, size_t index) {
  if (dtype == DType::kFp32) {
    float value;
    memcpy(&value, values + 4 * index, sizeof(value));
    return value;
  }
  uint16_t bits;
  memcpy(&bits, values + 2 * index, sizeof(bits));
  return dtype == DType::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}

// Adds [run.first, run.first + run.count) of exact records [K, V] of `record_tokens` tokens each,
// the first at `records`.
void AttendRecords(const QueryRows& rows, DType dtype, const std::byte* records, int record_tokens,
                   const TokenRun& run, uint64_t position, const RowResults& results) {
  const size_t row_bytes = static_cast<size_t>(rows.head_dim) * DTypeBytes(dtype);
  const size_t tensor_bytes = static_cast<size_t>(record_tokens) * row_bytes;
  const int run_end = run.first + run.count;
  for (int token = run.first; token < run_end;) {
    const int slot = token % record_tokens;
    const int count = std::min(record_tokens - slot, run_end - token);
    const std::byte* k = records + 2 * tensor_bytes * static_cast<size_t>(token / record_tokens) +
                         static_cast<size_t>(slot) * row_bytes;
    raw::AttendExact(rows, dtype, k, k + tensor_bytes, position, count, results);
    position += static_cast<uint64_t>(count);
    token += count;
  }
}

void AttendRun(const QueryRows& rows, DType dtype, int kv_head, const TokenRun& run,
               uint64_t position, const RowResults& results, planes::HeadAttention& planes) {
  if (run.form == TokenRun::Form::kExact) {
    const size_t head_bytes =
        2 * static_cast<size_t>(run.capacity * rows.head_dim) * DTypeBytes(dtype);
    AttendRecords(rows, dtype, run.data + head_bytes * static_cast<size_t>(kv_head), run.capacity,
                  run, position, results);
    return;
  }
  const SegmentView segment = SegmentView::Of(run.data);
  if (run.form == TokenRun::Form::kPackKv) {
    packkv::AttendBody(rows, segment.packkv_body(), kv_head, position, run.first, run.count,
                       results);
    return;
  }
  const std::byte* part = segment.part(kv_head);
  if (run.form == TokenRun::Form::kRaw) {
    AttendRecords(rows, dtype, part, kBlockTokens, run, position, results);
    return;
  }
  planes.Add(planes::PartView::Of(part, segment.k_pattern(kv_head), segment.v_pattern(kv_head)),
             position, run.first, run.count);
}

}  // namespace

CpuAttention::CpuAttention(WorkerPool* pool)
    : pool_(pool), planes_(static_cast<size_t>(pool->threads())) {}

void CpuAttention::Plan(const AttendItem& item) {
  const int per_head = item.shape.queries_per_kv_head();
  const int rows_all = item.query_tokens * per_head;
  for (int head = 0; head < item.shape.kv_heads; ++head) {
    for (int row = 0; row < rows_all; row += kQueryRowsMax) {
      RowGroup group{&item,
                     head,
                     row,
                     std::min(kQueryRowsMax, rows_all - row),
                     static_cast<int>(parts_.size()),
                     0};
      Part part{static_cast<int>(groups_.size()), 0, 0, item.first_position, 0, 0};
      int tokens = 0;
      uint64_t position = item.first_position;
      const int run_count = static_cast<int>(item.runs.size());
      for (int run = 0; run < run_count; ++run) {
        tokens += item.runs[static_cast<size_t>(run)].count;
        position += static_cast<uint64_t>(item.runs[static_cast<size_t>(run)].count);
        if (tokens < kPartTokens && run + 1 < run_count) continue;
        part.run_end = run + 1;
        part.row = states_.size();
        part.value = outputs_.size();
        states_.resize(states_.size() + static_cast<size_t>(group.rows));
        outputs_.resize(outputs_.size() + static_cast<size_t>(group.rows * item.shape.head_dim));
        parts_.push_back(part);
        part.run_begin = run + 1;
        part.position = position;
        tokens = 0;
      }
      group.part_end = static_cast<int>(parts_.size());
      groups_.push_back(group);
    }
  }
}

void CpuAttention::Run(const Part& part, int thread) {
  const RowGroup& group = groups_[static_cast<size_t>(part.group)];
  const AttendItem& item = *group.item;
  const int head_dim = item.shape.head_dim;
  const int per_head = item.shape.queries_per_kv_head();

  alignas(64) float q[kQueryRowsMax * kHeadDimMax];
  uint64_t begin[kQueryRowsMax] = {};
  uint64_t end[kQueryRowsMax] = {};
  for (int r = 0; r < group.rows; ++r) {
    const int query = (group.first_row + r) / per_head;
    const int head = group.kv_head * per_head + (group.first_row + r) % per_head;
    const size_t source =
        (static_cast<size_t>(query) * static_cast<size_t>(item.shape.query_heads) +
         static_cast<size_t>(head)) *
        static_cast<size_t>(head_dim);
    for (int c = 0; c < head_dim; ++c) {
      q[r * head_dim + c] =
          LoadValue(item.q, item.dtype, source + static_cast<size_t>(c)) * item.scale;
    }
    end[r] = item.query_position + static_cast<uint64_t>(query) + 1;
    const uint64_t window = static_cast<uint64_t>(item.shape.sliding_window);
    begin[r] = window != 0 && end[r] > window ? end[r] - window : 0;
  }
  const QueryRows rows{group.rows, head_dim, q, begin, end, item.shape.soft_cap};
  const RowResults results{&states_[part.row], &outputs_[part.value]};
  // Rows are in order of query position.
  const uint64_t seen_begin = begin[0];
  const uint64_t seen_end = end[group.rows - 1];

  planes::HeadAttention& planes = planes_[static_cast<size_t>(thread)];
  if (item.calibration != nullptr)
    planes.Begin(rows, item.calibration->heads[static_cast<size_t>(group.kv_head)]);
  uint64_t position = part.position;
  for (int i = part.run_begin; i < part.run_end; ++i) {
    const TokenRun& run = item.runs[static_cast<size_t>(i)];
    const uint64_t run_end = position + static_cast<uint64_t>(run.count);
    if (position < seen_end && run_end > seen_begin) {
      AttendRun(rows, item.dtype, group.kv_head, run, position, results, planes);
    }
    position = run_end;
  }
  if (item.calibration != nullptr) planes.Finish(results);
}

void CpuAttention::Merge(const RowGroup& group) {
  const AttendItem& item = *group.item;
  const size_t head_dim = static_cast<size_t>(item.shape.head_dim);
  const int per_head = item.shape.queries_per_kv_head();
  for (int r = 0; r < group.rows; ++r) {
    const int query = (group.first_row + r) / per_head;
    const int head = group.kv_head * per_head + (group.first_row + r) % per_head;
    const size_t target = static_cast<size_t>(query) * static_cast<size_t>(item.shape.query_heads) +
                          static_cast<size_t>(head);
    float* output = item.output + target * head_dim;
    std::fill(output, output + head_dim, 0.0f);
    SoftmaxState state;
    for (int p = group.part_begin; p < group.part_end; ++p) {
      const Part& part = parts_[static_cast<size_t>(p)];
      const float* partial = &outputs_[part.value + static_cast<size_t>(r) * head_dim];
      const MergeFactors factors = MergeInto(state, states_[part.row + static_cast<size_t>(r)]);
      for (size_t c = 0; c < head_dim; ++c)
        output[c] = output[c] * factors.a + partial[c] * factors.b;
    }
    item.log_sum_exp[target] = LogSumExp(state);
    if (state.sum == 0) continue;
    const float inverse = 1 / state.sum;
    for (size_t c = 0; c < head_dim; ++c) output[c] *= inverse;
  }
}

void CpuAttention::Attend(absl::Span<const AttendItem> items) {
  groups_.clear();
  parts_.clear();
  states_.clear();
  outputs_.clear();
  uint64_t products = 0;
  for (const AttendItem& item : items) {
    Plan(item);
    uint64_t tokens = 0;
    for (const TokenRun& run : item.runs) tokens += static_cast<uint64_t>(run.count);
    products += tokens * static_cast<uint64_t>(item.query_tokens) *
                static_cast<uint64_t>(item.shape.query_heads) *
                static_cast<uint64_t>(item.shape.head_dim);
  }
  const auto run = [this](int index, int thread) {
    Run(parts_[static_cast<size_t>(index)], thread);
  };
  const int part_count = static_cast<int>(parts_.size());
  if (products >= kParallelProductsMin) {
    pool_->ParallelFor(part_count, run);
  } else {
    for (int index = 0; index < part_count; ++index) run(index, 0);
  }
  for (const RowGroup& group : groups_) Merge(group);
}

}  // namespace kvdepot
