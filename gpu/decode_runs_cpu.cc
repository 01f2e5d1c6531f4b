#include "gpu/decode_runs_cpu.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "gpu/packkv/body.h"
#include "gpu/planes/decode_cpu.h"
#include "gpu/scalar.h"
#include "gpu/segment_view.h"

namespace kvdepot {
namespace {

// Client order: rows of one head are a token apart.
struct HostRows {
  DType dtype;
  size_t token_bytes;
  std::byte* first;  // row of the run's first token and this head
};

// Exact rows [head_dim] of `from`, `count` of them without gaps.
void CopyRows(const std::byte* rows, DType from, int head_dim, int count, const HostRows& host) {
  const size_t row_bytes = static_cast<size_t>(head_dim) * DTypeBytes(from);
  for (int token = 0; token < count; ++token) {
    const std::byte* row = rows + static_cast<size_t>(token) * row_bytes;
    std::byte* to = host.first + static_cast<size_t>(token) * host.token_bytes;
    if (from == host.dtype) {
      memcpy(to, row, row_bytes);
      continue;
    }
    for (int c = 0; c < head_dim; ++c) {
      StoreScalar(LoadScalar(row + static_cast<size_t>(c) * DTypeBytes(from), from), host.dtype,
                  to + static_cast<size_t>(c) * DTypeBytes(host.dtype));
    }
  }
}

// Tokens [first, first + count) of a `planes` tensor.
void DecodePlanes(const planes::TensorView& tensor, const uint8_t* order, int first, int count,
                  const HostRows& host) {
  const int head_dim = tensor.head_dim();
  float values[kBlockTokens * kHeadDimMax];
  const int end = first + count;
  for (int token = first; token < end;) {
    const int slot = token % kBlockTokens;
    const int block_count = std::min(kBlockTokens - slot, end - token);
    planes::DecodeBlock(tensor, order, token / kBlockTokens, values, static_cast<size_t>(head_dim));
    HostRows rows = host;
    rows.first += static_cast<size_t>(token - first) * host.token_bytes;
    CopyRows(reinterpret_cast<const std::byte*>(values + slot * head_dim), DType::kFp32, head_dim,
             block_count, rows);
    token += block_count;
  }
}

// One head's K and V of a raw segment, whose records interleave them.
void DecodeRaw(const std::byte* part, DType dtype, int head_dim, const TokenRun& run,
               const HostRows& k, const HostRows& v) {
  const size_t row_bytes = static_cast<size_t>(head_dim) * DTypeBytes(dtype);
  const size_t tensor_bytes = kBlockTokens * row_bytes;
  const int end = run.first + run.count;
  for (int token = run.first; token < end;) {
    const int slot = token % kBlockTokens;
    const int count = std::min(kBlockTokens - slot, end - token);
    const std::byte* rows = part + 2 * tensor_bytes * static_cast<size_t>(token / kBlockTokens) +
                            static_cast<size_t>(slot) * row_bytes;
    for (const auto& [host, source] : {std::pair{k, rows}, std::pair{v, rows + tensor_bytes}}) {
      HostRows target = host;
      target.first += static_cast<size_t>(token - run.first) * host.token_bytes;
      CopyRows(source, dtype, head_dim, count, target);
    }
    token += count;
  }
}

// One head's K or V of a `packkv` segment.
void DecodePackKv(const packkv::BodyView& body, int head, packkv::Tensor tensor, int head_dim,
                  const TokenRun& run, const HostRows& host) {
  std::vector<float> values(static_cast<size_t>(run.count) * static_cast<size_t>(head_dim));
  body.Decode(head, tensor, run.first, absl::MakeSpan(values));
  CopyRows(reinterpret_cast<const std::byte*>(values.data()), DType::kFp32, head_dim, run.count,
           host);
}

}  // namespace

void DecodeRuns(const LayerShape& shape, DType dtype, const LayerCalibration* calibration,
                absl::Span<const TokenRun> runs, DType to, std::byte* k, std::byte* v) {
  const size_t head_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(to);
  const size_t token_bytes = static_cast<size_t>(shape.kv_heads) * head_bytes;
  for (const TokenRun& run : runs) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      const HostRows k_rows{to, token_bytes, k + static_cast<size_t>(head) * head_bytes};
      const HostRows v_rows{to, token_bytes, v + static_cast<size_t>(head) * head_bytes};
      if (run.form == TokenRun::Form::kExact) {
        const size_t row_bytes = static_cast<size_t>(shape.head_dim) * DTypeBytes(dtype);
        const size_t tensor_bytes = static_cast<size_t>(run.capacity) * row_bytes;
        const std::byte* rows = run.data + 2 * tensor_bytes * static_cast<size_t>(head) +
                                static_cast<size_t>(run.first) * row_bytes;
        CopyRows(rows, dtype, shape.head_dim, run.count, k_rows);
        CopyRows(rows + tensor_bytes, dtype, shape.head_dim, run.count, v_rows);
        continue;
      }
      const SegmentView segment = SegmentView::Of(run.data);
      if (run.form == TokenRun::Form::kRaw) {
        DecodeRaw(segment.part(head), dtype, shape.head_dim, run, k_rows, v_rows);
        continue;
      }
      if (run.form == TokenRun::Form::kPackKv) {
        const packkv::BodyView body = segment.packkv_body();
        DecodePackKv(body, head, packkv::Tensor::kKey, shape.head_dim, run, k_rows);
        DecodePackKv(body, head, packkv::Tensor::kValue, shape.head_dim, run, v_rows);
        continue;
      }
      const auto part = planes::PartView::Of(segment.part(head), segment.k_pattern(head),
                                             segment.v_pattern(head));
      const HeadLayout& layout = calibration->heads[static_cast<size_t>(head)];
      DecodePlanes(part.k, layout.k.order.data(), run.first, run.count, k_rows);
      DecodePlanes(part.v, layout.v.order.data(), run.first, run.count, v_rows);
    }
    k += static_cast<size_t>(run.count) * token_bytes;
    v += static_cast<size_t>(run.count) * token_bytes;
  }
}

}  // namespace kvdepot
